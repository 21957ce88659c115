"""Authentication and addresses: how people and the JupyterHub reach the service."""

import re
from typing import Any, Final

from rabbit2docker.migration import forms
from rabbit2docker.migration.credentials import from_variable
from rabbit2docker.migration.translation import Translation

_TOKEN_KEY: Final = re.compile(r"hub\.services\.(.+)\.apiToken")
_SERVICE_PATH: Final = re.compile(r"(.*)/services/([^/]+)/?")
_PROXY: Final = re.compile(r"(?i:(?:https?|no|all)_proxy)")
_ENVIRONMENT: Final = "hub-environment"
_DERIVED: Final = {
    "JUPYTERHUB_SERVICE_PREFIX",
    "JUPYTERHUB_SERVICE_NAME",
    "JUPYTERHUB_SERVICE_URL",
    "JUPYTERHUB_OAUTH_CALLBACK_URL",
    "JUPYTERHUB_HOST",
    "JUPYTERHUB_ACTIVITY_URL",
}
"""Variables that the chart sets, or that the service needs no more."""

Variable = dict[str, Any]


def translate(translation: Translation) -> None:
    """Translate authentication, the path of the service, and the variables of its pod."""
    is_authenticated = translation.read("config.BinderHub.auth_enabled", forms.boolean)
    variables = _variables(translation)
    if is_authenticated:
        _of_jupyterhub(translation, variables)
    else:
        _without_authentication(translation)
        for name in (
            "JUPYTERHUB_API_TOKEN",
            "JUPYTERHUB_API_URL",
            "JUPYTERHUB_BASE_URL",
            "JUPYTERHUB_CLIENT_ID",
        ):
            variables.pop(name, None)
    for name in _DERIVED & variables.keys():
        del variables[name]
    _others(translation, variables)
    translation.change(
        "config.hub.trusted_proxies",
        "is not set: name the network of the pods of the hub's proxy, or all people without a login count as one address, "
        "which has config.hub.requests_per_address builds in an hour.",
    )


def _variables(translation: Translation) -> dict[str, Variable]:
    """Take the variables of the pod, written as a list or as a mapping, by name."""
    found = translation.take("extraEnv") or []
    if isinstance(found, dict):
        found = [
            {"name": name, **(item if isinstance(item, dict) else {"value": item})}
            for name, item in found.items()
        ]
    if not isinstance(found, list):
        translation.leave_note("extraEnv", "it is neither a list nor a mapping.")
        return {}
    for index, item in enumerate(found):
        if not isinstance(item, dict):
            translation.leave_note(f"extraEnv.{index}", "it is no variable.")
    return {str(item.get("name")): item for item in found if isinstance(item, dict)}


def _of_jupyterhub(translation: Translation, variables: dict[str, Variable]) -> None:
    base_url, name = "/", "binder"
    path = translation.read("config.BinderHub.base_url", forms.text)
    if path and (match := _SERVICE_PATH.fullmatch(path)):
        base_url, name = match[1] or "/", match[2]
    elif path:
        translation.set("config.hub.base_url", path, source="config.BinderHub.base_url")
    base_url = _value(variables.pop("JUPYTERHUB_BASE_URL", {})) or base_url
    client = _value(variables.pop("JUPYTERHUB_CLIENT_ID", {})) or ""
    name = client.removeprefix("service-") or name
    api = _value(variables.pop("JUPYTERHUB_API_URL", {}))
    if api and re.fullmatch(r"https?://[^@\s]+", api):
        translation.own("hubService.jupyterhub.apiUrl", api)
    if base_url.startswith("/") and base_url != "/":
        translation.own("hubService.jupyterhub.baseUrl", base_url)
    _token(translation, variables.pop("JUPYTERHUB_API_TOKEN", {}), name)


def _token(translation: Translation, variable: Variable, name: str) -> None:
    """Refer to the Secret with the service's token, if it is not the one of Zero to JupyterHub."""
    reference = (variable.get("valueFrom") or {}).get("secretKeyRef") or {}
    key = str(reference.get("key", ""))
    if match := _TOKEN_KEY.fullmatch(key):
        name = match[1]
    elif key:
        translation.own("hubService.jupyterhub.tokenKey", key)
    if "value" in variable:
        translation.leave_note(
            "extraEnv.JUPYTERHUB_API_TOKEN", "is in the Secret hubService.jupyterhub.existingSecret."
        )
    if reference.get("name", "hub") != "hub":
        translation.own("hubService.jupyterhub.existingSecret", str(reference["name"]))
    if name != "binder":
        translation.own("hubService.jupyterhub.serviceName", name)


def _value(variable: Variable) -> str | None:
    value = variable.get("value")
    return value if isinstance(value, str) else None


def _without_authentication(translation: Translation) -> None:
    translation.own("config.hub.auth", "none")
    translation.change(
        "config.hub.auth",
        "is none, as BinderHub.auth_enabled is not set: whatever reaches the service may build, under no name. Behind a "
        "JupyterHub, remove it: people then need access:services!service=binder, and limits count for each.",
    )
    old = "config.BinderHub.base_url"
    if translation.peek(old) == "/":
        translation.take(old)
    translation.copy(old, "config.hub.base_url", forms.filled)


def _others(translation: Translation, variables: dict[str, Variable]) -> None:
    """Copy proxies to everything that has connections, refer to tokens, and leave out what BinderHub alone reads."""
    proxies = []
    for name, variable in variables.items():
        path = f"extraEnv.{name}"
        if from_variable(translation, variable, path):
            continue
        if _PROXY.fullmatch(name):
            proxies.append(variable)
        else:
            translation.leave_note(
                path, "is a variable of BinderHub's pod. Set it in consumer.extraEnv if it is still needed."
            )
    if proxies:
        translation.set("consumer.extraEnv hubService.extraEnv", proxies, source="extraEnv")
