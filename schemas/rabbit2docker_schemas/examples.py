"""The messages of one build, as the documents show them; also useful for testing a subscriber."""

from datetime import UTC, datetime, timedelta
from typing import Final

from rabbit2docker_schemas import events, ids
from rabbit2docker_schemas.cloudevents import Event
from rabbit2docker_schemas.events import Kind, Phase
from rabbit2docker_schemas.reasons import CATEGORY_OF, HINT_OF, FailureReason, RejectReason
from rabbit2docker_schemas.requests import BuildRequest, CancelRequest

TENANT: Final = "hub-a"
REQUEST: Final = BuildRequest(
    provider="gh",
    spec="binder-examples/requirements/HEAD",
    request_id="ada-20260131-1",
    requester="ada",
)
_REQUEST_ID: Final = "ada-20260131-1"
_BUILD_ID: Final = ids.build_id_of(TENANT, _REQUEST_ID)
CANCEL: Final = CancelRequest(build_id=_BUILD_ID, requester="ada")

_REF: Final = "50533eb470ee6c24e872043d30b2fee463d6943f"
_IMAGE: Final = f"registry.example.org/r2d-binder-2dexamples-2drequirements-55ab5c:{_REF}"
_START: Final = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)


def _at(seconds: float) -> datetime:
    return _START + timedelta(seconds=seconds)


def _line(seconds: float, text: str) -> events.LogLine:
    return events.LogLine(phase=Phase.BUILDING, text=text, ts=_at(seconds))


_TAIL: Final = ("ERROR: No matching distribution found for nunpy",)
_TIMINGS: Final = events.Timings(queued=0.12, waiting=0.3, fetching=2.1, building=64.5)

EVENTS: Final[dict[Kind, Event]] = {
    event.kind: event
    for event in (
        Event(
            id=ids.request_event_id(TENANT, _REQUEST_ID, Kind.ACCEPTED),
            tenant=TENANT,
            time=_at(0.2),
            data=events.Accepted(
                request_id=_REQUEST_ID,
                build_id=_BUILD_ID,
                build_name="build-binder-2dexamples-2drequirements-55ab5c-505-e3",
                provider="gh",
                spec="binder-examples/requirements/HEAD",
                resolved_ref=_REF,
                repo_url="https://github.com/binder-examples/requirements",
                image=_IMAGE,
                requester="ada",
            ),
        ),
        Event(
            id=ids.request_event_id(TENANT, "ada-20260131-0", Kind.REJECTED),
            tenant=TENANT,
            time=_at(0.1),
            data=events.Rejected(
                request_id="ada-20260131-0",
                reason=RejectReason.REF_NOT_FOUND,
                message="github.com/binder-examples/requirements has no branch, tag or commit `mian`.",
            ),
        ),
        Event(
            id=ids.progress_event_id(_BUILD_ID, 1, "push:4/11"),
            tenant=TENANT,
            time=_at(70),
            data=events.Progress(
                build_id=_BUILD_ID,
                attempt=1,
                phase=Phase.PUSHING,
                message="Pushing the image",
                detail=events.ProgressDetail(layers_done=4, layers_total=11),
            ),
        ),
        Event(
            id=ids.lines_event_id(_BUILD_ID, 1, 17, 18, Kind.LOG),
            tenant=TENANT,
            time=_at(8.3),
            data=events.Log(
                build_id=_BUILD_ID,
                attempt=1,
                n=17,
                lines=[
                    _line(8.1, "Collecting numpy==2.2.1"),
                    _line(8.2, "Installing collected packages: numpy"),
                ],
            ),
        ),
        Event(
            id=ids.lines_event_id(_BUILD_ID, 1, 40, 52, Kind.GAP),
            tenant=TENANT,
            time=_at(9),
            data=events.Gap(
                build_id=_BUILD_ID,
                attempt=1,
                first=40,
                last=52,
                message="These lines were removed before they could be read.",
            ),
        ),
        Event(
            id=ids.terminal_event_id(_BUILD_ID),
            tenant=TENANT,
            time=_at(81),
            data=events.Completed(
                build_id=_BUILD_ID,
                image=_IMAGE,
                digest="sha256:4a5e5b0e2c9a4b8f0f6f1d8f4c0c5e7a9b1d3f5a7c9e1b3d5f7a9c1e3b5d7f90",
                size=412_345_678,
                resolved_ref=_REF,
                timings=_TIMINGS.model_copy(update={"pushing": 11.4}),
                attempt=1,
                lines=212,
                repo2docker_version="2026.4.0",
                builder_image="quay.io/jupyterhub/repo2docker:2026.4.0",
                provenance=events.Provenance(
                    source="https://github.com/binder-examples/requirements",
                    revision=_REF,
                    version="main",
                    created=_at(9.5),
                    request_id=_REQUEST_ID,
                    build_id=_BUILD_ID,
                    builder_version="0.1.0",
                ),
            ),
        ),
        Event(
            id=ids.terminal_event_id(_BUILD_ID),
            tenant=TENANT,
            time=_at(67),
            data=events.Failed(
                build_id=_BUILD_ID,
                reason=FailureReason.BUILD_STEP_FAILED,
                category=CATEGORY_OF[FailureReason.BUILD_STEP_FAILED],
                message="The step `RUN pip install -r requirements.txt` ended with exit code 1.",
                hint=HINT_OF[FailureReason.BUILD_STEP_FAILED],
                exit_code=70,
                failed_step="RUN pip install -r requirements.txt",
                tail=list(_TAIL),
                attempt=1,
                timings=_TIMINGS,
                lines=188,
            ),
        ),
        Event(
            id=ids.terminal_event_id(_BUILD_ID),
            tenant=TENANT,
            time=_at(30),
            data=events.Cancelled(build_id=_BUILD_ID, by="ada", attempt=1, lines=96),
        ),
    )
}
"""One event of each kind; the last three are alternative ends of the same build."""
