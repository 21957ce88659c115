"""Settings of the policy: the builds that tenants, requesters and repositories may start."""

from typing import Annotated

from pydantic import Field

from rabbit2docker.settings.base import Group

Limit = Annotated[int, Field(ge=0)]
OwnLimit = Annotated[int, Field(ge=0)] | None
Pattern = Annotated[str, Field(min_length=1, max_length=1000)]


class TenantPolicy(Group):
    """Limits of one tenant; unset: the common ones, 0: any number."""

    tenant_builds: OwnLimit = None
    """Builds of the tenant that run at once."""
    tenant_builds_per_hour: OwnLimit = None
    """Builds of the tenant that start within an hour."""
    requester_builds: OwnLimit = None
    """Builds of one of its requesters that run at once."""
    requester_builds_per_hour: OwnLimit = None
    """Builds of one of its requesters that start within an hour."""


class SpecQuota(Group):
    """The settings of the repositories that a pattern matches."""

    quota: Limit
    """Builds of one such repository that run at once; 0: any number."""


class SpecConfig(Group):
    """Settings for the repositories that a pattern matches, written as in BinderHub's `spec_config`."""

    pattern: Pattern
    """Regular expression, matched from the start of the spec, ignoring case."""
    config: SpecQuota
    """Settings of these repositories."""


class PolicySettings(Group):
    """Limits on builds. A request that needs no build of its own, since the image exists or is being built, has none.

    At a limit of builds that run at once, a request waits. At a limit per hour, a bulk request waits, and an interactive
    one is rejected with the time from which it may come again. This group, `providers.allowed_specs` and
    `providers.banned_specs` are read again whenever the file in RABBIT2DOCKER_CONFIG has changed.
    """

    tenant_builds: Limit = 0
    """Builds of one tenant that may run at once; 0: any number."""
    tenant_builds_per_hour: Limit = 0
    """Builds of one tenant that may start within an hour; 0: any number."""
    requester_builds: Limit = 0
    """Builds of one requester that may run at once; 0: any number. Requests without a requester count for their tenant alone."""
    requester_builds_per_hour: Limit = 0
    """Builds of one requester that may start within an hour; 0: any number."""
    repository_builds: Limit = 0
    """Builds of one repository that may run at once, of all its versions and for all tenants; 0: any number."""
    high_quota_builds: Limit = 0
    """The same for a repository that `high_quota_specs` matches; 0: any number."""
    high_quota_specs: dict[str, list[Pattern]] = {}
    """Regular expressions per provider, as in `providers.allowed_specs`, of repositories with `high_quota_builds`."""
    spec_config: dict[str, list[SpecConfig]] = {}
    """Quotas per provider, such as `{"gh": [{"pattern": "^course/", "config": {"quota": 40}}]}`: of several patterns that
    match, the last one counts, before `high_quota_specs`."""
    tenants: dict[str, TenantPolicy] = {}
    """Limits of single tenants, in place of the common ones."""
