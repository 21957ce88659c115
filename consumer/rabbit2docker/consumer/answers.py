"""The `accepted` events of builds that have a record, which keeps each answer until it is known to be published.

The replica that takes a request answers it, but may be slow, cut off or gone. Whichever replica follows the build publishes
the answers that are left before it publishes anything else, and again before the end; the id of both copies is the same.
"""

from rabbit2docker.consumer.attempt_cache import AttemptCache
from rabbit2docker.consumer.event_publisher import EventPublisher
from rabbit2docker.consumer.executors.base import Answer, Attempt, AttemptSpec
from rabbit2docker_schemas.events import Accepted, BuildOptions
from rabbit2docker_schemas.ids import RequestId, build_id_of
from rabbit2docker_schemas.requests import BuildRequest
from rabbit2docker_schemas.tracing import Trace
from rabbit2docker_schemas.validation_messages import ignored_fields


def answer_to(request: BuildRequest, notice: str | None, trace: Trace | None = None) -> Answer:
    """Return what the record keeps of a request until its `accepted` is published."""
    options = request.options()
    return Answer(
        provider=request.provider,
        spec=request.spec,
        requester=request.requester,
        trace=trace,
        notice=full_notice(request, notice),
        force=options.force,
        keep_cache=options.keep_cache,
        timeout_seconds=options.timeout_seconds,
    )


def accepted_from(build: AttemptSpec, request_id: str, answer: Answer) -> Accepted:
    """Return the event that answers a request of a record: the same from each replica, as its id is."""
    # The other options are part of the image's name, and so equal for all requests that share the build.
    options = build.request.options().model_copy(
        update={
            "force": answer.force,
            "keep_cache": answer.keep_cache,
            "timeout_seconds": answer.timeout_seconds,
        }
    )
    return Accepted(
        request_id=RequestId(request_id),
        build_id=build.build_id,
        build_name=build.build_name,
        provider=answer.provider,
        spec=answer.spec,
        resolved_ref=build.resolved_ref,
        repo_url=build.repo_url,
        image=build.image,
        attached=build.build_id != build_id_of(build.tenant, request_id),
        requester=answer.requester,
        options=None if options == BuildOptions() else options,
        notice=answer.notice,
    )


async def answer_all(attempt: Attempt, attempts: AttemptCache, events: EventPublisher) -> None:
    """Publish each answer of a record that no replica is known to have published. Raises BrokerUnavailable."""
    await attempts.until_answered(attempt.spec.build_id)
    for request_id, answer in attempts.unanswered(attempt.name, attempt.status).items():
        data = accepted_from(attempt.spec, request_id, answer)
        await events.publish_accepted(
            attempt.spec.tenant, data, generation=attempt.spec.generation, trace=answer.trace
        )
        attempts.note_answered(attempt.name, request_id)


def full_notice(request: BuildRequest, notice: str | None) -> str | None:
    """Return `notice`, and which fields of the request are unknown here and ignored."""
    ignored = ignored_fields(request.unknown_fields, BuildRequest.model_fields)
    return " ".join(filter(None, (notice, ignored))) or None
