"""Errors that the web side answers with: each has a status code and a message for a person."""

import math
from datetime import datetime

from tornado.web import HTTPError

from rabbit2docker.errors import AccessRefused, BrokerUnavailable, TopologyMismatch
from rabbit2docker.hub.store.models import Allowance

BROKER_ERRORS = (AccessRefused, BrokerUnavailable, TopologyMismatch)
"""Builds can be neither requested nor followed for now."""
BUILDS_UNAVAILABLE = "Builds cannot be requested at the moment. Please try again in a minute."
RECORDS_UNAVAILABLE = "The record of builds cannot be read at the moment. Please try again in a minute."
INTERNAL_ERROR = "Something went wrong inside the service. Please try again, or contact the operator."
NO_SUCH_PAGE = "There is nothing at this address."


class HttpError(HTTPError):
    """A request that cannot be served, with the reason in words for a person."""

    def __init__(self, message: str, status_code: int) -> None:
        """Take the message and the status of the response."""
        super().__init__(status_code)
        self.message = message


class Forbidden(HttpError):
    """The client is not allowed to do this, or is not authenticated."""

    def __init__(
        self,
        message: str,
        status_code: int,
        *,
        login_url: str | None = None,
        challenge: str | None = None,
    ) -> None:
        """Take message and status, and how a browser can log in: at `login_url`, or by answering `challenge`."""
        super().__init__(message, status_code)
        self.login_url = login_url
        self.challenge = challenge


class BannedNetwork(HttpError):
    """The request comes from a network that the operator has banned."""

    def __init__(self, label: str) -> None:
        """Take the operator's name of the network. The sentence is BinderHub's."""
        super().__init__(f"Requests from {label} are not allowed", 403)


class RateLimited(HttpError):
    """The client has requested as many builds as it may for now."""

    def __init__(self, message: str, allowance: Allowance, *, at: datetime) -> None:
        """Take the message and the state of the limit."""
        super().__init__(message, 429)
        self.allowance = allowance
        self.retry_after = max(1, math.ceil((allowance.reset_at - at).total_seconds()))
        """Seconds until the next request can be allowed."""


class TooManyStreams(HttpError):
    """The client has as many streams open as it may."""

    def __init__(self, message: str) -> None:
        """Take the message."""
        super().__init__(message, 429)
        self.retry_after = 30
        """Seconds after which trying again makes sense; a stream may end at any time."""


class UnknownProvider(HttpError):
    """No provider has the prefix that the client named."""
