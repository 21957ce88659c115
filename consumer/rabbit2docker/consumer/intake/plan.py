"""Build plans: the version to build, its names, the fingerprint by which builds are shared, and the `accepted` event."""

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from rabbit2docker.consumer.answers import full_notice
from rabbit2docker.consumer.executors.base import AttemptName, AttemptSpec
from rabbit2docker.consumer.images.names import build_name, image_name, options_digest
from rabbit2docker.consumer.intake.parsing import IncomingRequest
from rabbit2docker.consumer.providers.base import Repository
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.events import Accepted, BuildOptions
from rabbit2docker_schemas.requests import BuildRequest


@dataclass(frozen=True, slots=True)
class Plan:
    """The build that a request would start."""

    incoming: IncomingRequest
    repository: Repository
    image: str
    build_name: str
    fingerprint: str
    private_image: str | None = None
    """Name of the image if some of its content needs credentials, where the tenant shares `image` with others."""

    @property
    def names(self) -> list[str]:
        """The names that the image may have, first the one whose content no other tenant has made."""
        return [self.private_image, self.image] if self.private_image else [self.image]

    @property
    def build_id(self) -> str:
        """Return the id of the build."""
        return self.incoming.build_id

    @property
    def repo_url(self) -> str:
        """Return the URL that repo2docker fetches from."""
        return self.repository.repo_url

    @property
    def resolved_ref(self) -> str:
        """Return the version to build."""
        return self.repository.resolved_ref

    def is_forced_by(self, spec: AttemptSpec) -> bool:
        """Return whether the spec is of a forced build that makes the image of this plan."""
        mine = (self.incoming.tenant, self.repo_url, self.resolved_ref, self.image)
        return bool(spec.request.force) and mine == (
            spec.tenant,
            spec.repo_url,
            spec.resolved_ref,
            spec.image,
        )

    def spec(self, settings: Settings, *, now: datetime) -> AttemptSpec:
        """Return the specification of the first attempt."""
        incoming, request, limits = self.incoming, self.incoming.request, settings.limits
        return AttemptSpec(
            name=AttemptName(self.build_name),
            build_id=incoming.build_id,
            build_name=self.build_name,
            attempt=1,
            tenant=incoming.tenant,
            request_id=incoming.request_id,
            request=request,
            repo_url=self.repo_url,
            resolved_ref=self.resolved_ref,
            source_ref=self.repository.source_ref,
            content_provider=self.repository.content_provider,
            image=self.image,
            private_image=self.private_image,
            fingerprint=self.fingerprint,
            timeout_seconds=min(request.timeout_seconds or limits.build_seconds, limits.build_seconds),
            idle_seconds=limits.idle_seconds,
            queued_at=incoming.queued_at,
            created_at=now,
            generation=f"{now:%Y%m%dT%H%M%S%f}",
            trace=incoming.trace,
            builder_image=settings.builder_image,
        )


def make_plan(
    incoming: IncomingRequest, repository: Repository, prefix: str, private_prefix: str | None = None
) -> Plan:
    """Name the image, with the registry's `prefix`, and the build.

    With `private_prefix` if some of the content turns out to need credentials; it may be the same.

    Raises RequestRejected(INVALID_IMAGE_NAME) when no engine could take the name.
    """
    request = incoming.request
    options = options_digest(
        subdir=request.subdir,
        build_args=request.build_args,
        labels=request.labels,
        appendix=request.appendix,
    )
    image, private_image = (
        image_name(beginning, repository.build_slug, repository.resolved_ref, options_digest=options)
        for beginning in (prefix, private_prefix or prefix)
    )
    # BinderHub's names collide across providers, and tenants do not share builds: the name alone identifies nothing.
    identity = [incoming.tenant, repository.repo_url, repository.resolved_ref, options, image]
    # A forced build has to begin after its request: it joins no other.
    identity += [incoming.build_id] if request.force else []
    return Plan(
        incoming=incoming,
        repository=repository,
        image=image,
        build_name=build_name(repository.build_slug, repository.resolved_ref, options_digest=options),
        fingerprint=hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
        private_image=private_image if private_image != image else None,
    )


class NamedBuild(Protocol):
    """The part of a Plan or an AttemptSpec that `accepted` events report."""

    @property
    def build_id(self) -> str:
        """Return the id of the build."""

    @property
    def build_name(self) -> str:
        """Return BinderHub's name of the build."""

    @property
    def repo_url(self) -> str:
        """Return the URL that repo2docker fetches from."""

    @property
    def resolved_ref(self) -> str:
        """Return the version that is built."""

    @property
    def image(self) -> str:
        """Return the name and tag of the image."""


def accepted(
    incoming: IncomingRequest, build: NamedBuild, *, cached: bool = False, notice: str | None = None
) -> Accepted:
    """Return the event that answers a request with a build: its own, one that it joined, or a `cached` image."""
    request = incoming.request
    return Accepted(
        request_id=incoming.request_id,
        build_id=build.build_id,
        build_name=build.build_name,
        provider=request.provider,
        spec=request.spec,
        resolved_ref=build.resolved_ref,
        repo_url=build.repo_url,
        image=build.image,
        attached=build.build_id != incoming.build_id,
        cached=cached,
        requester=request.requester,
        options=options_of(request),
        notice=full_notice(request, notice),
    )


def options_of(request: BuildRequest) -> BuildOptions | None:
    """Return the request's build options; None if it has none."""
    options = request.options()
    return None if options == BuildOptions() else options
