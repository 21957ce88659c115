"""Which kinds of repositories can be built, as BinderHub's `/api/repoproviders` tells its forms."""

from typing import Any, Final

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
