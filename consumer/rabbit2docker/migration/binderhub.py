"""Values of binderhub-service, or of BinderHub's own chart, translated into those of the chart rabbit2docker."""

from typing import Any, Final

from rabbit2docker.migration import access, chart, credentials, forms, literals, settings
from rabbit2docker.migration.settings_check import check
from rabbit2docker.migration.translation import Translation
from rabbit2docker.migration.values_files import Values

_OWN_SNIPPETS: Final = (
    "binderhub-service-01-build-pods-docker-config",
    "binderhub-service-02-set-docker-api",
)
"""Code of the chart itself, whose work ours does by other means."""
_ORDER: Final = (
    "enabled",
    "global",
    "custom",
    "image",
    "imagePullSecrets",
    "amqp",
    "pushSecret",
    "githubToken",
    "gitlabToken",
    "tenantCredentials",
    "config",
)
"""Values in the order of the chart's own file; the others follow in the order of their translation."""


def translate(old: Values, *, image: str = "", amqp_secret: str = credentials.AMQP) -> Translation:
    """Return the translation of one section."""
    translation = Translation(old)
    translation.own("image.repository", image)
    translation.own("hubService.enabled", True)
    _code(translation)
    settings.use_present_names(translation)
    credentials.translate(translation, amqp_secret)
    settings.translate(translation)
    access.translate(translation)
    chart.translate(translation)
    translation.leave_the_rest()
    check(translation)
    _required(translation)
    translation.values = _in_order(translation.values)
    return translation


def _code(translation: Translation) -> None:
    """Read the Python code of the configuration, which runs after `config` and wins."""
    snippets = translation.read("extraConfig", forms.mapping) or {}
    for name in sorted(snippets):
        if name not in _OWN_SNIPPETS:
            _snippet(translation, f"extraConfig.{name}", literals.read(str(snippets[name])))


def _snippet(translation: Translation, path: str, snippet: literals.Snippet) -> None:
    for (group, setting), value in snippet.literals.items():
        translation.add(f"config.{group}.{setting}", value)
    computed = sorted(set(snippet.computed))
    if "KubernetesBuildExecutor.push_secret" in computed:
        computed.remove("KubernetesBuildExecutor.push_secret")
        translation.leave_note(
            path, "KubernetesBuildExecutor.push_secret is pushSecret, which the chart mounts."
        )
    if computed:
        translation.leave_note(
            path, f"Python code is not run. It computes {', '.join(computed)}: set what corresponds to it."
        )
    elif snippet.is_more:
        translation.leave_note(path, "Python code is not run. See what it does, and whether you need it.")


def _required(translation: Translation) -> None:
    """Name the values without which the chart is not installed."""
    config: dict[str, Any] = translation.values.setdefault("config", {})
    if not translation.values["image"]["repository"]:
        translation.change(
            "image.repository", "is required: the image that the Dockerfile of rabbit2docker makes."
        )
    if "prefix" not in config.get("images", {}):
        translation.change(
            "config.images.prefix", "is required, and not in these values: the old prefix keeps the names."
        )


def _in_order(values: Values) -> Values:
    first: Values = {key: values[key] for key in _ORDER if key in values}
    return {**first, **{key: value for key, value in values.items() if key not in first}}
