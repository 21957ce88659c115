"""BinderHub's settings, the section `config` of both charts, translated into ours."""

import re
from typing import Any, Final
from urllib.parse import urlsplit

from rabbit2docker.migration import forms
from rabbit2docker.migration.translation import Form, Translation
from rabbit2docker.registry_urls import DOCKER_HUB, DOCKER_HUB_NAMES, split_registry

PROVIDERS: Final = {
    "GitHubRepoProvider": "gh",
    "GistRepoProvider": "gist",
    "GitRepoProvider": "git",
    "GitLabRepoProvider": "gl",
    "ZenodoProvider": "zenodo",
    "FigshareProvider": "figshare",
    "DataverseProvider": "dataverse",
    "HydroshareProvider": "hydroshare",
    "CKANProvider": "ckan",
}
"""BinderHub's class → provider."""

_FORMER: Final = {
    "BinderHub.build_image": "KubernetesBuildExecutor.build_image",
    "BinderHub.push_secret": "KubernetesBuildExecutor.push_secret",
    "BinderHub.build_namespace": "KubernetesBuildExecutor.namespace",
    "BinderHub.build_node_selector": "KubernetesBuildExecutor.node_selector",
    "BinderHub.build_memory_request": "KubernetesBuildExecutor.memory_request",
    "BinderHub.build_memory_limit": "KubernetesBuildExecutor.memory_limit",
    "BinderHub.build_docker_host": "KubernetesBuildExecutor.docker_host",
    "BinderHub.log_tail_lines": "KubernetesBuildExecutor.log_tail_lines",
    "BinderHub.sticky_builds": "KubernetesBuildExecutor.sticky_builds",
    "BinderHub.appendix": "BuildExecutor.appendix",
    "BinderHub.build_max_age": "KubernetesCleaner.max_age",
    "KubernetesBuildExecutor.appendix": "BuildExecutor.appendix",
    "KubernetesBuildExecutor.repo2docker_extra_args": "BuildExecutor.repo2docker_extra_args",
    "KubernetesBuildExecutor.git_credentials": "BuildExecutor.git_credentials",
}
"""Settings by another name → the name that is translated."""

_COPIES: Final[dict[str, tuple[str, Form]]] = {
    "BinderHub.image_prefix": ("images.prefix", forms.filled),
    "BinderHub.concurrent_build_limit": ("limits.concurrent_builds", forms.integer),
    "BinderHub.cors_allow_origin": ("hub.allow_origin", forms.filled),
    "BinderHub.ban_networks": ("hub.ban_networks", forms.strings),
    "KubernetesBuildExecutor.build_image": ("builder.image", forms.filled),
    "KubernetesBuildExecutor.node_selector": ("kubernetes.node_selector", forms.strings),
    "KubernetesBuildExecutor.image_pull_secrets": ("kubernetes.image_pull_secrets", forms.names),
    "KubernetesBuildExecutor.extra_envs": ("kubernetes.env", forms.strings),
    "BuildExecutor.repo2docker_extra_args": ("builder.repo2docker_args", forms.texts),
    "KubernetesCleaner.max_age": ("limits.build_seconds", forms.integer),
    "RateLimiter.limit": ("hub.requests_per_address", forms.integer),
    "RateLimiter.period_seconds": ("hub.requests_period_seconds", forms.integer),
    "GitHubRepoProvider.hostname": ("providers.github_hostname", forms.filled),
    "GitLabRepoProvider.hostname": ("providers.gitlab_hostname", forms.filled),
    "GistRepoProvider.allow_secret_gist": ("providers.allow_secret_gists", forms.boolean),
}
"""Setting of BinderHub → ours, and its form."""

_SERVERS: Final = "starting servers is the JupyterHub's part; nothing is launched from here."
_PAGES: Final = "changes BinderHub's own pages; those of this service cannot be changed."
_CHART: Final = "the chart sets this itself."
_LEFT_OUT: Final = {
    "BinderHub.hub_url": _SERVERS,
    "BinderHub.hub_url_local": _SERVERS,
    "BinderHub.hub_api_token": "the chart reads the token from the Secret hubService.jupyterhub.existingSecret.",
    "BinderHub.per_repo_quota": "it limits running servers. Limits on builds are under config.policy.",
    "BinderHub.per_repo_quota_higher": "it limits running servers. Limits on builds are under config.policy.",
    "BinderHub.pod_quota": "it limits running servers. config.limits.concurrent_builds limits builds.",
    "BinderHub.use_named_servers": _SERVERS,
    "BinderHub.default_binder_url": _SERVERS,
    "BinderHub.badge_base_url": _PAGES,
    "BinderHub.about_message": _PAGES,
    "BinderHub.banner_message": _PAGES,
    "BinderHub.extra_footer_scripts": _PAGES,
    "BinderHub.google_analytics_code": _PAGES,
    "BinderHub.google_analytics_domain": _PAGES,
    "BinderHub.template_path": _PAGES,
    "BinderHub.template_variables": _PAGES,
    "BinderHub.extra_static_path": _PAGES,
    "BinderHub.extra_static_url_prefix": _PAGES,
    "BinderHub.port": _CHART,
    "BinderHub.debug": "set config.log.level to debug where you need it.",
    "BinderHub.build_docker_config": "the engines have their configuration in dockerApi.daemonConfig.",
    "BinderHub.executor_threads": "builds and viewers take no threads.",
    "BinderHub.build_cleanup_interval": "consumers clean up on their own.",
    "BinderHub.ban_networks_min_prefix_len": "networks of any size are looked up.",
    "BinderHub.builder_required": "consumers start without an engine, and wait for one.",
    "BinderHub.build_class": "builds always run in pods.",
    "BinderHub.registry_class": (
        "one client serves all registries, with the account in pushSecret. Where repositories must be created before a "
        "push, as in ECR, set config.images.create_command."
    ),
    "BinderHub.repo_providers": (
        "all nine providers are on. To close one, set config.providers.banned_specs, such as {gist: ['.*']}."
    ),
    "BinderHub.log_level": "set config.log.level to debug, info, warning or error.",
    "KubernetesBuildExecutor.namespace": "builds run in the namespace of the release.",
    "KubernetesBuildExecutor.docker_host": "builds use the engine on their node; see dockerApi.socketDirectory.",
    "KubernetesBuildExecutor.cpu_limit": "pods of builds have none: the work is done in dockerApi.",
    "KubernetesBuildExecutor.log_tail_lines": "a viewer that comes late gets the whole log.",
    "KubernetesBuildExecutor.sticky_builds": "builds always prefer a node that has their layers.",
    "BuildExecutor.memory_limit": "repo2docker has no such option any more; limit dockerApi.resources.",
    "KubernetesBuildExecutor.api": _CHART,
    "DockerRegistry.token_url": "the registry's answer names it.",
    "DockerRegistry.auth_config_url": "the registry's host names it.",
    "GitHubRepoProvider.client_id": "an OAuth app is not used; a token has the same limit: githubToken.existingSecret.",
    "GitHubRepoProvider.client_secret": "an OAuth app is not used; a token has the same limit: githubToken.existingSecret.",
    "BinderHub.build_token_expires_seconds": "the issuer of a build token sets its end.",
}
"""Setting of BinderHub → why it is left out."""


def translate(translation: Translation) -> None:
    """Translate all settings, apart from those that name secrets or are about authentication."""
    _use_of_the_interface(translation)
    for old, (new, form) in _COPIES.items():
        translation.copy(f"config.{old}", f"config.{new}", form)
    _providers(translation)
    _appendix(translation)
    _memory(translation)
    _registry_url(translation)
    for old, reason in _LEFT_OUT.items():
        translation.leave(f"config.{old}", reason)


def use_present_names(translation: Translation) -> None:
    """Move settings to the names under which they are translated; those names themselves win."""
    for former, name in _FORMER.items():
        value = translation.take(f"config.{former}")
        if value is not None:
            if translation.peek(f"config.{name}") is None:
                translation.add(f"config.{name}", value)
            else:
                translation.leave_note(f"config.{former}", f"is overridden by config.{name}.")


def _use_of_the_interface(translation: Translation) -> None:
    if translation.read("config.BinderHub.enable_api_only_mode", forms.boolean) is False:
        translation.leave_note(
            "config.BinderHub.enable_api_only_mode",
            f"there is no other mode: {_SERVERS} People build on the service's pages.",
        )
    if translation.read("config.BinderHub.use_registry", forms.boolean) is False:
        translation.leave_note(
            "config.BinderHub.use_registry", "images are always pushed to a registry, which is needed."
        )


def _providers(translation: Translation) -> None:
    """Translate what operators allow and ban. What stands at the base class holds for all providers."""
    for rule in ("allowed_specs", "banned_specs"):
        common = translation.take(f"config.RepoProvider.{rule}")
        for cls, provider in PROVIDERS.items():
            old = f"config.{cls}.{rule}"
            if translation.peek(old) is None and common is not None:
                translation.add(old, common)
            translation.copy(old, f"config.providers.{rule}.{provider}", forms.texts)
    for cls in ("RepoProvider", *PROVIDERS):
        for quota in ("high_quota_specs", "spec_config"):
            translation.leave(
                f"config.{cls}.{quota}",
                "it limits running servers. Limits on builds are under config.policy.",
            )
    _api_url(translation)


def _api_url(translation: Translation) -> None:
    """Translate the address of GitHub's API, in which BinderHub replaces the host's name."""
    old = "config.GitHubRepoProvider.api_base_path"
    path = translation.read(old, forms.filled)
    if path is None:
        return
    host = translation.values.get("config", {}).get("providers", {}).get("github_hostname", "github.com")
    url = path.replace("{hostname}", str(host))
    if "{" in url:
        translation.leave_note(
            old, "holds a placeholder that this command does not know. Set config.providers.github_api_url."
        )
    elif url.rstrip("/") != "https://api.github.com":
        translation.set("config.providers.github_api_url", url, source=old)


def _appendix(translation: Translation) -> None:
    old = "config.BuildExecutor.appendix"
    text = translation.read(old, forms.text)
    if not text:
        return
    if re.search(r"\{\w+\}", text):
        translation.leave_note(
            old,
            "holds placeholders of BinderHub. Without them, it is config.builder.repo2docker_args: ['--appendix=…'].",
        )
        return
    arguments = [*_arguments(translation), f"--appendix={text}"]
    translation.set("config.builder.repo2docker_args", arguments, source=old)
    translation.change(
        old, "is an argument of repo2docker now. As before, it is not part of the names of images."
    )


def _arguments(translation: Translation) -> list[str]:
    found = translation.values.get("config", {}).get("builder", {}).get("repo2docker_args", [])
    return list(found)


def _memory(translation: Translation) -> None:
    """Translate amounts, whose K, M, G and T are powers of 1024 in BinderHub."""
    for name in ("memory_request", "memory_limit"):
        translation.copy(f"config.KubernetesBuildExecutor.{name}", f"config.kubernetes.{name}", _amount)
    cpu = "config.KubernetesBuildExecutor.cpu_request"
    if translation.peek(cpu) == 0:
        translation.take(cpu)
    translation.copy(cpu, "config.kubernetes.cpu_request", _cpus)


def _amount(value: Any) -> str:
    text = str(value)
    if not re.fullmatch(r"[1-9][0-9]*[KMGT]?", text):
        raise ValueError("it is no amount of memory")
    return f"{text}i" if text[-1].isalpha() else text


def _cpus(value: Any) -> str:
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?m?", str(value)):
        raise ValueError("it is no number of CPUs")
    return str(value)


def _registry_url(translation: Translation) -> None:
    """Translate the registry's address, unless it follows from the prefix, as it does almost everywhere."""
    old = "config.DockerRegistry.url"
    url = translation.read(old, forms.text)
    prefix = translation.values.get("config", {}).get("images", {}).get("prefix")
    if not url:
        return
    host = urlsplit(url if "//" in url else f"//{url}").hostname or ""
    registry = split_registry(prefix)[0] if isinstance(prefix, str) else ""
    is_same = host == registry.partition(":")[0] or (registry == DOCKER_HUB and host in DOCKER_HUB_NAMES)
    if not is_same:
        translation.set("config.images.registry_url", url if "//" in url else f"https://{url}", source=old)
