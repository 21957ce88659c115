"""Reasons for rejected requests and failed builds, with a category and a hint for each failure.

The values are on the wire: a new one is a minor change, and none may be renamed within a major version.
"""

from enum import StrEnum
from typing import Final


class RejectReason(StrEnum):
    """Reason for rejecting a request."""

    INVALID_JSON = "invalid_json"
    INVALID_REQUEST = "invalid_request"  # a field is missing, unknown or of the wrong type
    TOO_LARGE = "too_large"
    UNSUPPORTED_TYPE = "unsupported_type"  # ce-type or content type that this version does not read
    UNKNOWN_PROVIDER = "unknown_provider"
    INVALID_SPEC = "invalid_spec"  # the spec does not fit the provider's grammar
    NOT_ALLOWED = "not_allowed"  # the spec is banned or not among the allowed ones
    LIMIT_REACHED = "limit_reached"  # a limit of the operator on builds; the message says when it ends
    REFUSED_URL = "refused_url"  # URL with a scheme or address that requests may not use
    REF_NOT_FOUND = "ref_not_found"
    REPOSITORY_NOT_FOUND = "repository_not_found"
    REPOSITORY_PRIVATE = (
        "repository_private"  # the host asks for credentials; it may hide that there is no repository
    )
    CREDENTIALS_REFUSED = (
        "credentials_refused"  # the host does not accept those of the tenant: expired, withdrawn
    )
    HOST_KEY_REFUSED = (
        "host_key_refused"  # the SSH host has another key than the operator has recorded, or an unknown one
    )
    REPOSITORY_EMPTY = "repository_empty"  # a dataset without files that can be downloaded
    REPOSITORY_TOO_LARGE = "repository_too_large"  # a dataset beyond the operator's limit
    INVALID_IMAGE_NAME = "invalid_image_name"
    REGISTRY_DENIED = "registry_denied"  # the registry refuses the operator's credentials, or needs some
    REQUEST_ID_REUSED = "request_id_reused"  # an earlier request with this id has other content
    EXPIRED = "expired"  # not_after has passed, or the operator's limit for a request that waits
    DELIVERY_LIMIT = "delivery_limit"  # taken again and again, and the service failed each time
    CANCELLED = "cancelled"  # cancelled before a build started
    UNAVAILABLE = "unavailable"  # a service that is needed stayed away for as long as requests wait
    INTERNAL = "internal"


class Category(StrEnum):
    """Party that can act on a failure."""

    USER = "user"
    INFRASTRUCTURE = "infrastructure"  # possibly transient: retried while attempts are left
    OPERATOR = "operator"
    TIMEOUT = "timeout"


class Again(StrEnum):
    """Place where a failed build is tried again without being asked."""

    HERE = "here"  # the builder repeats the step; after that another attempt is made
    ELSEWHERE = "elsewhere"  # another attempt is made, on another node if there is one
    NEVER = "never"


class FailureReason(StrEnum):
    """Reason for a failed build. The builder reports some of them itself, by its exit codes."""

    FETCH_FAILED = "fetch_failed"
    FETCH_INTERRUPTED = (
        "fetch_interrupted"  # a fault that may pass: the connection broke, the host has a problem
    )
    SUBMODULE_FAILED = "submodule_failed"
    UNSAFE_REPOSITORY = "unsafe_repository"  # files of the build machine would be read through the repository
    REPOSITORY_TOO_LARGE = "repository_too_large"
    REF_NOT_FOUND = "ref_not_found"
    REPOSITORY_PRIVATE = "repository_private"
    CREDENTIALS_REFUSED = (
        "credentials_refused"  # the host does not accept those of the tenant: expired, withdrawn
    )
    HOST_KEY_REFUSED = (
        "host_key_refused"  # the SSH host has another key than the operator has recorded, or an unknown one
    )
    NO_ENVIRONMENT = "no_environment"
    LOOKUP_FAILED = "lookup_failed"  # repo2docker could not ask which versions of R or Julia there are
    BUILD_STEP_FAILED = "build_step_failed"
    BASE_IMAGE_MISSING = "base_image_missing"  # the registry does not have it, or not for this platform
    BASE_IMAGE_PRIVATE = (
        "base_image_private"  # the registry asks for a login; it may hide that there is no image
    )
    BASE_IMAGE_UNAVAILABLE = "base_image_unavailable"  # its registry limits, fails or cannot be reached
    BUILD_OUT_OF_MEMORY = "build_out_of_memory"
    BUILDER_OUT_OF_MEMORY = "builder_out_of_memory"
    PUSH_DENIED = "push_denied"
    PUSH_REJECTED = "push_rejected"  # no such repository, quota, size limit: repeating it changes nothing
    PUSH_FAILED = "push_failed"
    DOCKER_UNAVAILABLE = "docker_unavailable"
    ENGINE_ERROR = "engine_error"  # the engine's own fault, such as a layer that it lost
    DISK_FULL = "disk_full"
    IMAGE_MISSING = "image_missing"  # gone from the engine before the push, or from the registry after it
    TIMEOUT = "timeout"
    IDLE = "idle"
    BAD_SPEC = "bad_spec"
    BUILDER_ERROR = "builder_error"
    BUILDER_LOST = "builder_lost"  # the builder ended without a result
    RECORD_LOST = "record_lost"  # the executor has no record of the attempt any more
    NO_NODE = "no_node"  # no node with docker-api and room for the build pod
    BUILDER_IMAGE_UNAVAILABLE = "builder_image_unavailable"  # the image of the build pod cannot be pulled
    POD_MISCONFIGURED = "pod_misconfigured"  # a Secret, a ConfigMap or the command of the build pod is wrong
    POD_NOT_STARTED = "pod_not_started"  # the node could not start the build pod: network, volumes
    NODE_REFUSED = "node_refused"  # the node had no room after all
    EVICTED = "evicted"  # node pressure, drain, preemption, node shutdown
    NODE_LOST = "node_lost"  # the node stopped responding
    POD_DELETED = "pod_deleted"  # the build pod was deleted by hand


CATEGORY_OF: Final[dict[FailureReason, Category]] = {
    FailureReason.FETCH_FAILED: Category.USER,
    FailureReason.FETCH_INTERRUPTED: Category.INFRASTRUCTURE,
    FailureReason.SUBMODULE_FAILED: Category.USER,
    FailureReason.UNSAFE_REPOSITORY: Category.USER,
    FailureReason.REPOSITORY_TOO_LARGE: Category.USER,
    FailureReason.REF_NOT_FOUND: Category.USER,
    FailureReason.REPOSITORY_PRIVATE: Category.USER,
    FailureReason.CREDENTIALS_REFUSED: Category.OPERATOR,
    FailureReason.HOST_KEY_REFUSED: Category.OPERATOR,
    FailureReason.NO_ENVIRONMENT: Category.USER,
    FailureReason.LOOKUP_FAILED: Category.INFRASTRUCTURE,
    FailureReason.BUILD_STEP_FAILED: Category.USER,
    FailureReason.BASE_IMAGE_MISSING: Category.USER,
    FailureReason.BASE_IMAGE_PRIVATE: Category.USER,
    FailureReason.BASE_IMAGE_UNAVAILABLE: Category.INFRASTRUCTURE,
    FailureReason.BUILD_OUT_OF_MEMORY: Category.USER,
    FailureReason.BUILDER_OUT_OF_MEMORY: Category.USER,
    FailureReason.PUSH_DENIED: Category.OPERATOR,
    FailureReason.PUSH_REJECTED: Category.OPERATOR,
    FailureReason.PUSH_FAILED: Category.INFRASTRUCTURE,
    FailureReason.DOCKER_UNAVAILABLE: Category.INFRASTRUCTURE,
    FailureReason.ENGINE_ERROR: Category.INFRASTRUCTURE,
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
    # Not retried: a pod is deleted by hand to end its build.
    FailureReason.POD_DELETED: Category.OPERATOR,
}

AGAIN_OF: Final[dict[FailureReason, Again]] = {
    reason: Again.ELSEWHERE if category is Category.INFRASTRUCTURE else Again.NEVER
    for reason, category in CATEGORY_OF.items()
} | {
    FailureReason.FETCH_INTERRUPTED: Again.HERE,
    FailureReason.BASE_IMAGE_UNAVAILABLE: Again.HERE,
    FailureReason.PUSH_FAILED: Again.HERE,
    FailureReason.DOCKER_UNAVAILABLE: Again.HERE,
}

INTERRUPTIONS: Final = frozenset(
    {
        FailureReason.DOCKER_UNAVAILABLE,
        FailureReason.EVICTED,
        FailureReason.NODE_LOST,
        FailureReason.NODE_REFUSED,
    }
)
"""Ends of an attempt that are the platform's own doing: a further attempt does not use up those of the build."""

HINT_OF: Final[dict[FailureReason, str]] = {
    FailureReason.FETCH_FAILED: "Check that the repository can be cloned from outside, then build again.",
    FailureReason.FETCH_INTERRUPTED: "The host of the repository, or the way to it, has a problem. Build again later.",
    FailureReason.SUBMODULE_FAILED: "Correct or remove the submodule that the message names: its address must be public and readable without a password. Then build again.",
    FailureReason.UNSAFE_REPOSITORY: "Replace what the message names with a file or directory of the repository, or remove it. Then build again.",
    FailureReason.REPOSITORY_TOO_LARGE: "Keep data out of the repository and download it in a build step, or ask the operator for a higher limit.",
    FailureReason.REF_NOT_FOUND: "The branch, tag or commit may have been renamed or deleted. Check it, then build again.",
    FailureReason.REPOSITORY_PRIVATE: "Make the repository public, or ask the operator to configure credentials for it.",
    FailureReason.CREDENTIALS_REFUSED: "The operator must renew the credentials that the message names. Then build again.",
    FailureReason.HOST_KEY_REFUSED: "The operator must find out whether the host has a new key, and record it. Then build again.",
    FailureReason.NO_ENVIRONMENT: "Check the environment files of the repository (environment.yml, requirements.txt, Dockerfile …), then build again.",
    FailureReason.LOOKUP_FAILED: "Build again later. If it fails again, ask the operator whether the service reaches that server.",
    FailureReason.BUILD_STEP_FAILED: "The last log lines show the failed step and its error. Fix the repository, then build again.",
    FailureReason.BASE_IMAGE_MISSING: "Check name and tag of the image in FROM or COPY --from, and its platforms. Fix the Dockerfile, then build again.",
    FailureReason.BASE_IMAGE_PRIVATE: "Check the image's name, use a public image, or ask the operator to configure a login for it.",
    FailureReason.BASE_IMAGE_UNAVAILABLE: "Check the host in the image's name. If it is right, build again later; the registry may be overloaded or limit requests.",
    FailureReason.BUILD_OUT_OF_MEMORY: "Install fewer or smaller packages per step, or ask the operator for more memory.",
    FailureReason.BUILDER_OUT_OF_MEMORY: "The repository may be too large. Keep data out of it, or ask the operator for more memory.",
    FailureReason.PUSH_DENIED: "The operator must check the registry credentials and their permission to push this image.",
    FailureReason.PUSH_REJECTED: "The operator must change the registry as the message says: create the repository, raise its quota or the size limit of a proxy, or mend its certificate.",
    FailureReason.PUSH_FAILED: "The registry did not accept the image. Build again later; pushed layers are kept.",
    FailureReason.DOCKER_UNAVAILABLE: "The Docker engine became unavailable. Build again later; finished steps are cached.",
    FailureReason.ENGINE_ERROR: "Build again. If it fails again, ask the operator to check the Docker engine's storage and log.",
    FailureReason.DISK_FULL: "The disk of the build machine is full. Ask the operator to free space, then build again.",
    FailureReason.IMAGE_MISSING: "Build again. If it fails again, ask the operator what removes images from the Docker engine or the registry.",
    FailureReason.TIMEOUT: "The build exceeded its time limit. Make it smaller, or ask the operator for a longer limit.",
    FailureReason.IDLE: "The build printed nothing for too long and was considered stuck. Print progress in long steps, or ask the operator for a longer limit.",
    FailureReason.BAD_SPEC: "The service and the builder do not match. The operator must check their versions.",
    FailureReason.BUILDER_ERROR: "This is a defect of the builder. Report it to the operator with the log.",
    FailureReason.BUILDER_LOST: "The builder was terminated from outside. Build again.",
    FailureReason.RECORD_LOST: "The record of the build was removed from outside. Build again.",
    FailureReason.NO_NODE: "The operator must check that docker-api is running and ready on a node with room for build pods.",
    FailureReason.BUILDER_IMAGE_UNAVAILABLE: "The operator must check builder.image, its registry and kubernetes.image_pull_secrets.",
    FailureReason.POD_MISCONFIGURED: "The operator must check that the Secrets named in the settings exist and that the builder image is the right one.",
    FailureReason.POD_NOT_STARTED: "The node could not start the build pod. Build again; if it fails again, ask the operator to check the node's events.",
    FailureReason.NODE_REFUSED: "The node had no room for the build. Build again later.",
    FailureReason.EVICTED: "The cluster needed the node or its resources. Build again.",
    FailureReason.NODE_LOST: "The node of the build stopped responding. Build again.",
    FailureReason.POD_DELETED: "The build pod was deleted by hand. Ask the operator for the reason, or build again.",
}
