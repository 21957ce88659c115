"""The base of every group of settings, and the settings of the log."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(gt=0)]


class Group(BaseModel):
    """One group of settings. Unknown names are errors; nothing changes after start."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LogSettings(Group):
    """The service's own log."""

    level: str = Field(default="info", pattern="^(debug|info|warning|error)$")
    """debug, info, warning or error."""
    format: str = Field(default="auto", pattern="^(auto|json|console)$")
    """auto: readable lines on a terminal, JSON otherwise."""
