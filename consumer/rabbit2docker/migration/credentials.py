"""Accounts, tokens and keys: never copied, but read from Secrets that have to be created."""

import re
from typing import Any, Final
from urllib.parse import urlsplit

from rabbit2docker.migration import forms
from rabbit2docker.migration.confidential import is_secret_name
from rabbit2docker.migration.translation import Translation, put

PUSH: Final = "rabbit2docker-push"
GITHUB: Final = "rabbit2docker-github"
GITLAB: Final = "rabbit2docker-gitlab"
BUILD_TOKEN: Final = "rabbit2docker-build-token"
AMQP: Final = "rabbitmq"

_ACCOUNTS: Final = (
    "buildPodsRegistryCredentials.server",
    "buildPodsRegistryCredentials.username",
    "buildPodsRegistryCredentials.password",
    "registry.url",
    "registry.username",
    "registry.password",
    "config.DockerRegistry.username",
    "config.DockerRegistry.password",
    "extraCredentials.googleServiceAccountKey",
)
"""Values that make up the registry's account."""
_TYPE: Final = "--type=kubernetes.io/dockerconfigjson"
_CONFIG_KEY: Final = "--from-file=.dockerconfigjson=config.json"


def generic(name: str, key: str, placeholder: str) -> str:
    """Return a command that creates a Secret with one key."""
    return f"kubectl create secret generic {name} --from-literal={key}={placeholder}"


def translate(translation: Translation, amqp_secret: str) -> None:
    """Translate everything that is secret in itself."""
    url = "amqps://USER:PASSWORD@HOST/VIRTUAL_HOST"
    translation.own("amqp", {"existingSecret": amqp_secret, "urlKey": "url"})
    translation.need_secret(amqp_secret, "amqp.existingSecret", generic(amqp_secret, "url", f"'{url}'"))
    _registry(translation)
    _host_tokens(translation)
    _git(translation)
    old = "config.BinderHub.build_token_secret"
    if translation.take(old):
        _refer(translation, "hubService.buildToken", BUILD_TOKEN, "secret", "HEXADECIMAL", old)


def _refer(translation: Translation, value: str, name: str, key: str, placeholder: str, source: str) -> None:
    translation.own(value, {"existingSecret": name, "key": key})
    translation.need_secret(name, f"{value}.existingSecret", generic(name, key, placeholder), source)


def _registry(translation: Translation) -> None:
    """Translate the account that pushes: a Secret by name, or one that has to be made of a password."""
    named = translation.read("config.KubernetesBuildExecutor.push_secret", forms.text)
    server = _server(translation)
    sources = [path for path in _ACCOUNTS if translation.take(path)]
    if translation.take("buildPodsDockerConfig"):
        sources.append("buildPodsDockerConfig")
        command = f"kubectl create secret generic {PUSH} {_TYPE} {_CONFIG_KEY}"
    else:
        account = "--docker-username=USER --docker-password=PASSWORD"
        command = f"kubectl create secret docker-registry {PUSH} --docker-server={server} {account}"
    if named:
        _existing(translation, named)
    elif sources:
        translation.own("pushSecret", PUSH)
        translation.need_secret(PUSH, "pushSecret", command, *sources)


def _existing(translation: Translation, name: str) -> None:
    translation.own("pushSecret", name)
    translation.change(
        "pushSecret",
        f"is the Secret of KubernetesBuildExecutor.push_secret. {name} must have the type kubernetes.io/dockerconfigjson and "
        "the key .dockerconfigjson, where BinderHub's has config.json.",
    )


def _server(translation: Translation) -> str:
    """Return the registry's address for a command, without an account in it."""
    for path in ("buildPodsRegistryCredentials.server", "registry.url", "config.DockerRegistry.url"):
        found = translation.peek(path)
        if isinstance(found, str) and re.fullmatch(r"(https?://)?[\w.:-]+(/[\w./-]*)?", found):
            return found
    return "REGISTRY"


def _host_tokens(translation: Translation) -> None:
    for old, value, name in (
        ("config.GitHubRepoProvider.access_token", "githubToken", GITHUB),
        ("github.accessToken", "githubToken", GITHUB),
        ("config.GitLabRepoProvider.access_token", "gitlabToken", GITLAB),
        ("config.GitLabRepoProvider.private_token", "gitlabToken", GITLAB),
    ):
        if translation.take(old):
            _refer(translation, value, name, "token", "TOKEN", old)


def _git(translation: Translation) -> None:
    """Translate the logins for private repositories, which have a host each."""
    for cls, default in (("GitHubRepoProvider", "github.com"), ("GitLabRepoProvider", "gitlab.com")):
        old = f"config.{cls}.git_credentials"
        if not translation.take(old):
            continue
        host = translation.peek(f"config.{cls}.hostname") or default
        host = (urlsplit(f"//{host}").hostname if isinstance(host, str) else None) or default
        name = f"rabbit2docker-git-{host.replace('.', '-')}"
        path = ("tenantCredentials", "default", "git", host)
        put(translation.values, path, {"existingSecret": name, "tokenKey": "token"})
        command = generic(name, "token", "TOKEN")
        translation.need_secret(name, f"tenantCredentials.default.git.{host}.existingSecret", command, old)
    for cls in ("GitRepoProvider", "RepoProvider", "GistRepoProvider", "BuildExecutor"):
        translation.leave(
            f"config.{cls}.git_credentials",
            "does not say for which host it is. Put it into a Secret, and set tenantCredentials.default.git.HOST.",
        )


def from_variable(translation: Translation, variable: dict[str, Any], path: str) -> bool:
    """Take a token that a variable of the pod has from a Secret; return whether it is one."""
    reference = (variable.get("valueFrom") or {}).get("secretKeyRef")
    is_github = variable.get("name") in ("GITHUB_ACCESS_TOKEN", "GITHUB_TOKEN")
    if is_github and isinstance(reference, dict) and {"name", "key"} <= reference.keys():
        translation.own(
            "githubToken", {"existingSecret": str(reference["name"]), "key": str(reference["key"])}
        )
    elif is_github:
        _refer(translation, "githubToken", GITHUB, "token", "TOKEN", path)
    elif "value" in variable and is_secret_name(str(variable.get("name"))):
        translation.leave_note(path, "is a secret that this service does not read.")
    else:
        return False
    return True
