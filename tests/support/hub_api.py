"""Clients of the JSON API that check every response against the OpenAPI document."""

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp
from jsonschema import Draft202012Validator, FormatChecker
from yarl import URL

from rabbit2docker_schemas import events, ids
from rabbit2docker_schemas.cloudevents import Event
from tests.support.hub_service import PATIENCE, Sent, parse, read_frames

JSON = "application/json"


@dataclass(frozen=True)
class Answer:
    """A response of the API."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def message(self) -> str:
        return str(self.json["message"])


@dataclass
class Api:
    """A client of the API."""

    address: str
    headers: dict[str, str] = field(default_factory=dict)
    document: dict[str, Any] = field(default_factory=dict)

    def with_token(self, token: str) -> "Api":
        return replace(self, headers={**self.headers, "Authorization": f"Bearer {token}"})

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.call("GET", path, headers=headers)

    async def delete(self, path: str, **headers: str) -> Answer:
        return await self.call("DELETE", path, headers=headers)

    async def post(self, path: str, data: Any = None, **headers: str) -> Answer:
        body = None if data is None else json.dumps(data).encode()
        kind = {} if data is None else {"Content-Type": JSON}
        return await self.call("POST", path, body, headers={**kind, **headers})

    async def call(
        self, method: str, path: str, body: bytes | None = None, *, headers: Mapping[str, str] = {}
    ) -> Answer:
        """Make a request and check the answer."""
        sent = {**self.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
        async with aiohttp.ClientSession(timeout=PATIENCE, skip_auto_headers=["Content-Type"]) as session:
            if not self.document:
                async with session.get(f"{self.address}api/openapi.json") as response:
                    self.document = await response.json()
            url = URL(self.address + path, encoded=True)
            async with session.request(method, url, data=body, headers=sent, allow_redirects=False) as answer:
                found = Answer(answer.status, answer.headers, await answer.read())
        self._check(method, path.partition("?")[0], found)
        return found

    async def follow(self, id_: str, **headers: str) -> list[Sent]:
        """Return all events of a build until the stream ends."""
        answer = await self.get(f"api/builds/{id_}/events", **headers)
        assert answer.status == 200, answer
        return self.checked(parse(answer.body))

    @asynccontextmanager
    async def live(self, id_: str, **headers: str) -> AsyncIterator[AsyncGenerator[Sent, None]]:
        """Give a build's events as they come; leaving closes the connection."""
        sent = {**self.headers, **{name.replace("_", "-"): value for name, value in headers.items()}}
        url = f"{self.address}api/builds/{id_}/events"
        async with (
            aiohttp.ClientSession(timeout=PATIENCE) as session,
            session.get(url, headers=sent) as answer,
        ):
            assert answer.status == 200, await answer.read()
            yield read_frames(answer)

    def checked(self, sent: list[Sent]) -> list[Sent]:
        for each in sent:
            self._valid(
                {
                    "$ref": f"#/components/schemas/{'QueuePosition' if each.event == 'queue' else 'BuildEvent'}"
                },
                each.data,
            )
        return sent

    def _check(self, method: str, path: str, answer: Answer) -> None:
        """Check that the document allows this response."""
        described = [
            operations[method.lower()]
            for template, operations in self.document["paths"].items()
            if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), f"/{path}")
            and method.lower() in operations
        ]
        if not described:
            assert answer.status in ((204,) if method == "OPTIONS" else (403, 404, 405)), answer
            return
        [operation] = described
        responses = operation["responses"]
        assert str(answer.status) in responses, f"{method} {path} answered {answer.status} {answer.body!r}"
        content = responses[str(answer.status)].get("content")
        if content is None:
            assert not answer.body
            return
        kind = answer.headers["Content-Type"].partition(";")[0]
        assert kind in content, (kind, content)
        if kind == JSON:
            self._valid(content[kind]["schema"], answer.json)

    def _valid(self, schema: Mapping[str, Any], value: Any) -> None:
        whole = {**schema, "components": self.document["components"]}
        Draft202012Validator(whole, format_checker=FormatChecker()).validate(value)


def lines_of(sent: list[Sent]) -> list[tuple[int, int, str]]:
    """Return attempt, number and text of each line among what was sent."""
    return [
        (each.data["data"]["attempt"], number, line["text"])
        for each in sent
        if each.event == "log"
        for number, line in enumerate(each.data["data"]["lines"], each.data["data"]["n"])
    ]


def kinds(sent: list[Sent]) -> list[str | None]:
    return [each.event for each in sent]


def shape(sent: list[Sent]) -> list[str]:
    """Return the kinds in their order, batches of lines that follow each other as one."""
    found: list[str] = []
    for kind in kinds(sent):
        if kind != "log" or found[-1:] != ["log"]:
            found.append(str(kind))
    return found


def happened(request_id: str, *what: events.AnyEventData, tenant: str = "default") -> list[Event]:
    """Return the events of the build of a request, with the ids that a consumer gives them; ids are filled in."""
    build_id = ids.build_id_of(tenant, request_id)
    found = []
    began = datetime.now(UTC) - timedelta(seconds=len(what))
    for number, data in enumerate(what):
        named = {"request_id": request_id, "build_id": build_id}
        # Events about another build or request have its id already.
        known = {
            name: value
            for name, value in named.items()
            if name in type(data).model_fields and not getattr(data, name)
        }
        found.append(_event(data.model_copy(update=known), number, tenant, began + timedelta(seconds=number)))
    return found


def _event(data: events.AnyEventData, number: int, tenant: str, at: datetime) -> Event:
    if isinstance(data, events.Log):
        written = [line.model_copy(update={"ts": at}) for line in data.lines]
        data = data.model_copy(update={"lines": written})
    match data:
        case events.Accepted() | events.Rejected():
            event_id = ids.request_event_id(tenant, data.request_id, data.kind)
        case events.Progress():
            event_id = ids.progress_event_id(data.build_id, data.attempt, str(number))
        case events.Log():
            last = data.n + len(data.lines) - 1
            event_id = ids.lines_event_id(data.build_id, data.attempt, data.n, last, data.kind)
        case events.Gap():
            event_id = ids.lines_event_id(data.build_id, data.attempt, data.first, data.last, data.kind)
        case _:
            event_id = ids.terminal_event_id(data.build_id)
    return Event(event_id, tenant, at, data)
