"""Every reason a request is rejected or a build fails, with the category that says who can act on it.

The words are on the wire: adding one is a minor change, renaming one is not allowed within a major version.
"""

from enum import StrEnum
from typing import Final


class RejectReason(StrEnum):
    """Why a request never became a build."""

    INVALID_JSON = "invalid_json"
    INVALID_REQUEST = "invalid_request"  # fields are missing, unknown or of the wrong kind
    TOO_LARGE = "too_large"
    UNSUPPORTED_TYPE = "unsupported_type"  # a ce-type or content type that this version does not read
    UNKNOWN_PROVIDER = "unknown_provider"
    INVALID_SPEC = "invalid_spec"  # the provider cannot read the spec
    NOT_ALLOWED = "not_allowed"  # the operator banned the spec or did not allow it
    REFUSED_URL = "refused_url"  # scheme or address that a request may not name
    REF_NOT_FOUND = "ref_not_found"
    REPOSITORY_NOT_FOUND = "repository_not_found"
    REPOSITORY_PRIVATE = "repository_private"  # it exists perhaps, but asks for credentials
    INVALID_IMAGE_NAME = "invalid_image_name"
    REQUEST_ID_REUSED = "request_id_reused"  # same id, other content
    EXPIRED = "expired"  # not_after has passed
    CANCELLED = "cancelled"  # cancelled before a build was made of it
    UNAVAILABLE = "unavailable"  # something we need stayed away until the last retry
    INTERNAL = "internal"


class Category(StrEnum):
    """Who can do something about a failure."""

    USER = "user"
    INFRASTRUCTURE = "infrastructure"  # may pass: retried while attempts are left
    OPERATOR = "operator"
    TIMEOUT = "timeout"


class FailureReason(StrEnum):
    """Why a build failed. The builder's own words are among them (see its exit codes)."""

    FETCH_FAILED = "fetch_failed"
    REF_NOT_FOUND = "ref_not_found"
    REPOSITORY_PRIVATE = "repository_private"
    NO_ENVIRONMENT = "no_environment"
    BUILD_STEP_FAILED = "build_step_failed"
    BUILD_OUT_OF_MEMORY = "build_out_of_memory"
    BUILDER_OUT_OF_MEMORY = "builder_out_of_memory"
    PUSH_DENIED = "push_denied"
    PUSH_FAILED = "push_failed"
    DOCKER_UNAVAILABLE = "docker_unavailable"
    DISK_FULL = "disk_full"
    IMAGE_MISSING = "image_missing"  # built and pushed, yet the registry does not have it
    TIMEOUT = "timeout"
    IDLE = "idle"
    BAD_SPEC = "bad_spec"
    BUILDER_ERROR = "builder_error"
    BUILDER_LOST = "builder_lost"  # it ended without a result
    RECORD_LOST = "record_lost"  # the executor no longer knows the attempt
    NO_NODE = "no_node"  # no node with docker-api and room for the build pod
    BUILDER_IMAGE_UNAVAILABLE = "builder_image_unavailable"  # the image of the build pod cannot be pulled
    POD_MISCONFIGURED = "pod_misconfigured"  # a Secret, a ConfigMap or the command of the build pod is wrong
    POD_NOT_STARTED = "pod_not_started"  # the node could not start the build pod: network, volumes
    NODE_REFUSED = "node_refused"  # the node had no room after all
    EVICTED = "evicted"  # node pressure, drain, preemption, node shutdown
    NODE_LOST = "node_lost"  # the node stopped responding
    POD_DELETED = "pod_deleted"  # somebody deleted the build pod


CATEGORY_OF: Final[dict[FailureReason, Category]] = {
    FailureReason.FETCH_FAILED: Category.USER,
    FailureReason.REF_NOT_FOUND: Category.USER,
    FailureReason.REPOSITORY_PRIVATE: Category.USER,
    FailureReason.NO_ENVIRONMENT: Category.USER,
    FailureReason.BUILD_STEP_FAILED: Category.USER,
    FailureReason.BUILD_OUT_OF_MEMORY: Category.USER,
    FailureReason.BUILDER_OUT_OF_MEMORY: Category.USER,
    FailureReason.PUSH_DENIED: Category.OPERATOR,
    FailureReason.PUSH_FAILED: Category.INFRASTRUCTURE,
    FailureReason.DOCKER_UNAVAILABLE: Category.INFRASTRUCTURE,
    FailureReason.DISK_FULL: Category.INFRASTRUCTURE,
    FailureReason.IMAGE_MISSING: Category.INFRASTRUCTURE,
    FailureReason.TIMEOUT: Category.TIMEOUT,
    FailureReason.IDLE: Category.TIMEOUT,
    FailureReason.BAD_SPEC: Category.OPERATOR,
    FailureReason.BUILDER_ERROR: Category.INFRASTRUCTURE,
    FailureReason.BUILDER_LOST: Category.INFRASTRUCTURE,
    FailureReason.RECORD_LOST: Category.INFRASTRUCTURE,
    FailureReason.NO_NODE: Category.OPERATOR,
    FailureReason.BUILDER_IMAGE_UNAVAILABLE: Category.OPERATOR,
    FailureReason.POD_MISCONFIGURED: Category.OPERATOR,
    FailureReason.POD_NOT_STARTED: Category.INFRASTRUCTURE,
    FailureReason.NODE_REFUSED: Category.INFRASTRUCTURE,
    FailureReason.EVICTED: Category.INFRASTRUCTURE,
    FailureReason.NODE_LOST: Category.INFRASTRUCTURE,
    # Not tried again: whoever deletes a pod by hand wants the build to end.
    FailureReason.POD_DELETED: Category.OPERATOR,
}

HINT_OF: Final[dict[FailureReason, str]] = {
    FailureReason.FETCH_FAILED: "Check that the repository can be cloned from outside, then ask again.",
    FailureReason.REF_NOT_FOUND: "Check the branch, tag or commit: it may have been renamed or deleted.",
    FailureReason.REPOSITORY_PRIVATE: "Make the repository public, or ask the operator to set credentials for it.",
    FailureReason.NO_ENVIRONMENT: "Check the environment files (environment.yml, requirements.txt, Dockerfile …) of the repository.",
    FailureReason.BUILD_STEP_FAILED: "The last log lines name the step and its error: mend the repository and ask again.",
    FailureReason.BUILD_OUT_OF_MEMORY: "Install fewer or smaller packages in one step, or ask the operator for more memory.",
    FailureReason.BUILDER_OUT_OF_MEMORY: "The repository may be very large: keep data out of it, or ask the operator for more memory.",
    FailureReason.PUSH_DENIED: "The operator must check the registry credentials and that the image repository may be written.",
    FailureReason.PUSH_FAILED: "The registry could not take the image. Ask again later; finished layers are kept.",
    FailureReason.DOCKER_UNAVAILABLE: "The Docker engine went away. Ask again later; finished steps are kept.",
    FailureReason.DISK_FULL: "The disk of the build machine is full. The operator must free space.",
    FailureReason.IMAGE_MISSING: "The registry lost the image after the push. The operator should check its storage.",
    FailureReason.TIMEOUT: "The build took longer than it may. Make it smaller, or ask the operator for a longer limit.",
    FailureReason.IDLE: "The build printed nothing for too long and was taken for stuck.",
    FailureReason.BAD_SPEC: "The service and the builder do not understand each other. The operator should check their versions.",
    FailureReason.BUILDER_ERROR: "This is a defect of the builder. Please report it with the log.",
    FailureReason.BUILDER_LOST: "The builder was ended from outside. Ask again.",
    FailureReason.RECORD_LOST: "The record of the build was removed from outside. Ask again.",
    FailureReason.NO_NODE: "The operator must check that docker-api runs and is ready on a node with room for build pods.",
    FailureReason.BUILDER_IMAGE_UNAVAILABLE: "The operator must check builder.image, its registry and kubernetes.image_pull_secrets.",
    FailureReason.POD_MISCONFIGURED: "The operator must check that the Secrets named in the settings exist and that the builder image fits.",
    FailureReason.POD_NOT_STARTED: "The node could not start the build pod. Ask again; the operator should look at the node's events.",
    FailureReason.NODE_REFUSED: "The cluster is short of room. Ask again later.",
    FailureReason.EVICTED: "The cluster needed the room or the node. Ask again.",
    FailureReason.NODE_LOST: "The node of the build stopped responding. Ask again.",
    FailureReason.POD_DELETED: "Somebody with access to the cluster deleted the build pod. Ask again, or ask the operator why.",
}
