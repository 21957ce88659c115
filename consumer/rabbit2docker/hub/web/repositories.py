"""Which kinds of repositories can be built, as BinderHub's `/api/repoproviders` tells its forms."""

from typing import Any, Final

from rabbit2docker.hub.web.auth import HttpError

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


class NoProvider(HttpError):
    """There is no such kind of repository."""


def check_provider(prefix: str) -> None:
    """Raise NoProvider, with BinderHub's sentence and what there is: what can be no build is not even asked for."""
    if prefix not in PREFIXES:
        raise NoProvider(
            f"No provider found for prefix {prefix[:64]}. There are {' and '.join(PREFIXES)}.", 404
        )
