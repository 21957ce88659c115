"""Providers of repositories, as BinderHub's `/api/repoproviders` describes them for forms."""

from typing import Any, Final

from rabbit2docker.hub.web.errors import UnknownProvider

KINDS: Final[list[dict[str, Any]]] = [
    {
        "displayName": "GitHub",
        "id": "gh",
        "spec": {"validateRegex": r"[^/]+/[^/]+/.+"},
        "detect": {"regex": r"^(https?://github\.com/)(?<repo>[^/]+/[^/]+?)(\.git)?/?$"},
        "repo": {
            "label": "GitHub repository, as owner/name or its URL",
            "placeholder": "binder-examples/requirements",
        },
        "ref": {"enabled": True, "default": "HEAD"},
    },
    {
        "displayName": "Git repository",
        "id": "git",
        "spec": {"validateRegex": r"[^/]+/.+"},
        "repo": {
            "label": "URL of any git repository that can be read without a password",
            "placeholder": "https://git.example.org/ada/thesis",
            "urlEncode": True,
        },
        "ref": {"enabled": True, "default": "HEAD"},
    },
]
PREFIXES: Final = tuple(str(kind["id"]) for kind in KINDS)


def check_provider(prefix: str) -> None:
    """Raise UnknownProvider, with BinderHub's sentence and the known prefixes, before anything is published."""
    if prefix not in PREFIXES:
        raise UnknownProvider(
            f"No provider found for prefix {prefix[:64]}. There are {' and '.join(PREFIXES)}.", 404
        )
