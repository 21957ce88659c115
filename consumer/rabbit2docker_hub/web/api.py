"""The JSON API: builds asked for, looked up, followed, ended and built again."""

from typing import Final

from rabbit2docker_hub.web.guards import Refusal
from rabbit2docker_hub.web.handlers import JsonHandler


class BuildsHandler(JsonHandler):
    """All builds."""

    async def get(self) -> None:
        """List builds."""
        raise Refusal("This is not there yet.", 501)

    async def post(self) -> None:
        """Ask for a build."""
        raise Refusal("This is not there yet.", 501)


class OneHandler(JsonHandler):
    """One build."""

    async def get(self, id_: str) -> None:
        """Tell where it stands."""
        raise Refusal("This is not there yet.", 501)

    async def delete(self, id_: str) -> None:
        """End it."""
        raise Refusal("This is not there yet.", 501)


class LogHandler(JsonHandler):
    """The log of one build."""

    async def get(self, id_: str) -> None:
        """Tell it."""
        raise Refusal("This is not there yet.", 501)


class EventsHandler(JsonHandler):
    """What happens to one build."""

    async def get(self, id_: str) -> None:
        """Tell it as it happens."""
        raise Refusal("This is not there yet.", 501)


class RebuildHandler(JsonHandler):
    """One build once more."""

    async def post(self, id_: str) -> None:
        """Ask for it."""
        raise Refusal("This is not there yet.", 501)


API_ROUTES: Final[list[tuple[str, type[JsonHandler]]]] = [
    (r"api/builds", BuildsHandler),
    (r"api/builds/([^/]+)", OneHandler),
    (r"api/builds/([^/]+)/log", LogHandler),
    (r"api/builds/([^/]+)/events", EventsHandler),
    (r"api/builds/([^/]+)/rebuild", RebuildHandler),
]
