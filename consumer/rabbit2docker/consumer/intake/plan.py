"""From a wish to what exactly is to be built: the version, the names, and what makes two builds the same."""

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from rabbit2docker.consumer.executors.base import AttemptName, AttemptSpec
from rabbit2docker.consumer.images.names import build_name, image_name, options_digest
from rabbit2docker.consumer.intake.parsing import IncomingRequest
from rabbit2docker.consumer.providers.base import Repository
from rabbit2docker.settings import Settings
from rabbit2docker_schemas.events import Accepted, BuildOptions
from rabbit2docker_schemas.requests import BuildRequest

NONCE_LENGTH: Final = 10


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be built for a wish."""

    wish: IncomingRequest
    repository: Repository
    image: str
    build_name: str
    fingerprint: str

    def spec(self, settings: Settings, *, now: datetime) -> AttemptSpec:
        """Return the first attempt's specification."""
        request, limits = self.wish.request, settings.limits
        return AttemptSpec(
            name=AttemptName(self.build_name),
            build_id=self.wish.build_id,
            build_name=self.build_name,
            attempt=1,
            tenant=self.wish.tenant,
            request_id=self.wish.request_id,
            request=request,
            repo_url=self.repository.repo_url,
            resolved_ref=self.repository.resolved_ref,
            content_provider=self.repository.content_provider,
            image=self.image,
            fingerprint=self.fingerprint,
            timeout_seconds=min(request.timeout_seconds or limits.build_seconds, limits.build_seconds),
            idle_seconds=limits.idle_seconds,
            queued_at=self.wish.queued_at,
            created_at=now,
        )

    def accepted(
        self, *, build_id: str | None = None, attached: bool = False, cached: bool = False
    ) -> Accepted:
        """Return the answer to the wish; `build_id` where another build was joined."""
        request = self.wish.request
        return Accepted(
            request_id=self.wish.request_id,
            build_id=build_id or self.wish.build_id,
            build_name=self.build_name,
            provider=request.provider,
            spec=request.spec,
            resolved_ref=self.repository.resolved_ref,
            repo_url=self.repository.repo_url,
            image=self.image,
            attached=attached,
            cached=cached,
            requester=request.requester,
            options=options_of(request),
        )


def make_plan(wish: IncomingRequest, repository: Repository, prefix: str) -> Plan:
    """Name everything. Raises RequestRejected(INVALID_IMAGE_NAME) when no engine could take the name."""
    request = wish.request
    options = options_digest(
        subdir=request.subdir,
        build_args=request.build_args,
        labels=request.labels,
        appendix=request.appendix,
    )
    nonce = wish.build_id.replace("-", "")[:NONCE_LENGTH] if request.force else None
    image = image_name(
        prefix, repository.build_slug, repository.resolved_ref, options_digest=options, nonce=nonce
    )
    # BinderHub's names collide across providers, and tenants do not share builds: the name alone proves nothing.
    same = [wish.tenant, repository.repo_url, repository.resolved_ref, options, image]
    return Plan(
        wish=wish,
        repository=repository,
        image=image,
        build_name=build_name(repository.build_slug, repository.resolved_ref, options_digest=options),
        fingerprint=hashlib.sha256(json.dumps(same).encode()).hexdigest(),
    )


def accepted_from(spec: AttemptSpec, wish: IncomingRequest, *, attached: bool) -> Accepted:
    """Return the answer to a wish whose build has a record already."""
    request = wish.request
    return Accepted(
        request_id=wish.request_id,
        build_id=spec.build_id,
        build_name=spec.build_name,
        provider=request.provider,
        spec=request.spec,
        resolved_ref=spec.resolved_ref,
        repo_url=spec.repo_url,
        image=spec.image,
        attached=attached,
        requester=request.requester,
        options=options_of(request),
    )


def options_of(request: BuildRequest) -> BuildOptions | None:
    """Return what the request asks for beside the repository; None if that is nothing."""
    given = request.model_dump(include=set(BuildOptions.model_fields))
    options = BuildOptions.model_validate(given)
    return None if options == BuildOptions() else options
