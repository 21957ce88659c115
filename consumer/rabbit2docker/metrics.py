"""Every metric: name, help and labels. Label values come from small enums, never from a repository."""

from collections.abc import Iterable
from typing import Final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

REGISTRY: Final = CollectorRegistry()
"""A registry of its own, free of metrics that libraries register by default."""

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
"""Content-Type of what `render` returns."""

_BUILD_BUCKETS: Final = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0)
_BINDERHUB_BUCKETS: Final = (60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0)
_QUEUED_BUCKETS: Final = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)
_FAST_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

REQUESTS_RECEIVED = Counter(
    "rabbit2docker_requests_received_total", "Deliveries received by intake.", ["queue"], registry=REGISTRY
)
REQUESTS_SETTLED = Counter(
    "rabbit2docker_requests_settled_total",
    "Deliveries settled by intake, by outcome: queued (to wait for a slot), accepted, attached, cached, rejected, retried, waiting (for the end of an outage), stale, error.",
    ["outcome"],
    registry=REGISTRY,
)
REQUESTS_REJECTED = Counter(
    "rabbit2docker_requests_rejected_total", "Rejected requests, by reason.", ["reason"], registry=REGISTRY
)
REQUESTS_LIMITED = Counter(
    "rabbit2docker_requests_limited_total",
    "Requests that met a limit on builds, once for each time they were tried.",
    ["limit"],
    registry=REGISTRY,
)
INTAKE_SECONDS = Histogram(
    "rabbit2docker_intake_seconds",
    "Seconds from delivery to acknowledgement.",
    registry=REGISTRY,
    buckets=_FAST_BUCKETS,
)
ACK_FAILURES = Counter(
    "rabbit2docker_ack_failures_total",
    "Acknowledgements lost because the channel had closed; RabbitMQ redelivers the message.",
    registry=REGISTRY,
)
BUILDS_LIVE = Gauge("rabbit2docker_builds_live", "Attempts that occupy a slot.", registry=REGISTRY)
BUILDS_FOLLOWED = Gauge(
    "rabbit2docker_builds_followed", "Attempts followed by this replica.", registry=REGISTRY
)
BUILDS_ENDED = Counter(
    "rabbit2docker_builds_ended_total",
    "Ended builds, by result: completed, cancelled or the failure reason.",
    ["result"],
    registry=REGISTRY,
)
BUILD_SECONDS = Histogram(
    "rabbit2docker_build_seconds",
    "Seconds from the creation of an attempt to its end.",
    ["result"],
    registry=REGISTRY,
    buckets=_BUILD_BUCKETS,
)
ATTEMPTS_RETRIED = Counter(
    "rabbit2docker_attempts_retried_total",
    "Attempts after the first, by the failure reason of the previous one.",
    ["reason"],
    registry=REGISTRY,
)
ATTEMPTS_ADOPTED = Counter(
    "rabbit2docker_attempts_adopted_total", "Running attempts adopted at start.", registry=REGISTRY
)
EVENTS_PUBLISHED = Counter(
    "rabbit2docker_events_published_total", "Confirmed events.", ["kind"], registry=REGISTRY
)
EVENT_PUBLISH_SECONDS = Histogram(
    "rabbit2docker_event_publish_seconds",
    "Seconds until an event was confirmed, retries included.",
    registry=REGISTRY,
    buckets=_FAST_BUCKETS,
)
EVENT_PUBLISH_RETRIES = Counter(
    "rabbit2docker_event_publish_retries_total", "Publishes that were retried.", registry=REGISTRY
)
EVENTS_UNROUTED = Counter(
    "rabbit2docker_events_unrouted_total",
    "Events that RabbitMQ could not route: a tenant's stream is missing, or RabbitMQ has just started.",
    registry=REGISTRY,
)
HUB_EVENTS_HELD = Gauge(
    "rabbit2docker_hub_events_held",
    "Events that a hub's queue has refused and is offered again, by tenant (`other`: one that is not in the settings).",
    ["tenant"],
    registry=REGISTRY,
)
HUB_EVENTS_MISSED = Counter(
    "rabbit2docker_hub_events_missed_total",
    "Events that a hub's queue refused until amqp.hub_backlog_bytes was reached, or that its bindings do not let in again; "
    "the tenant's stream has them.",
    ["tenant"],
    registry=REGISTRY,
)
OUTBOX = Gauge("rabbit2docker_outbox_events", "Events waiting for a publisher confirm.", registry=REGISTRY)
AMQP_CONNECTED = Gauge(
    "rabbit2docker_amqp_connected", "1 while the connection is up.", ["role"], registry=REGISTRY
)
AMQP_RECONNECTS = Counter(
    "rabbit2docker_amqp_reconnects_total",
    "Connections opened again after a loss.",
    ["role"],
    registry=REGISTRY,
)
AMQP_BLOCKED = Gauge(
    "rabbit2docker_amqp_blocked",
    "1 while RabbitMQ blocks publishers (memory or disk alarm).",
    registry=REGISTRY,
)
TOPOLOGY_RESTORED = Counter(
    "rabbit2docker_topology_restored_total",
    "Exchanges, queues, streams and bindings that had disappeared and were declared again, by kind. Bindings are seen "
    "only with amqp.management_url.",
    ["kind"],
    registry=REGISTRY,
)
TOPOLOGY_PROBLEMS = Gauge(
    "rabbit2docker_topology_problems",
    "Exchanges, queues, streams and bindings that are missing or differ and were not restored.",
    registry=REGISTRY,
)
QUEUE_MESSAGES = Gauge(
    "rabbit2docker_queue_messages",
    "Messages that wait in each queue, those in hand aside, as the last check of the topology has seen it: requests, rungs "
    "of the retry ladder, dead letters, unrouted requests.",
    ["queue"],
    registry=REGISTRY,
)
QUEUE_AGE = Gauge(
    "rabbit2docker_queue_age_seconds",
    "Seconds that the oldest request or cancel waits in its queue, at most: since the publication of the one taken last, or "
    "since the queue was last seen empty, whichever is later; 0 if nothing waited at the last check of the topology.",
    ["queue"],
    registry=REGISTRY,
)
MESSAGES_LOST = Counter(
    "rabbit2docker_messages_lost_total",
    "Messages that waited in a queue, as last seen, before it was deleted. Their senders must send them again.",
    ["queue"],
    registry=REGISTRY,
)
QUEUED_SECONDS = Histogram(
    "rabbit2docker_request_queued_seconds",
    "Seconds from the publication of a request, by its timestamp, to its first delivery to intake, by queue.",
    ["queue"],
    registry=REGISTRY,
    buckets=_QUEUED_BUCKETS,
)
DEAD_LETTERED = Counter(
    "rabbit2docker_dead_lettered_total",
    "Messages that became dead letters, by reason. Those that RabbitMQ itself moves are only in "
    "rabbit2docker_queue_messages.",
    ["reason"],
    registry=REGISTRY,
)
PUBLISH_NACKS = Counter(
    "rabbit2docker_publish_nacks_total",
    "Messages that RabbitMQ refused, by exchange: a queue is full or has no majority of its copies.",
    ["exchange"],
    registry=REGISTRY,
)
REQUESTS_UNROUTED = Counter(
    "rabbit2docker_requests_unrouted_total",
    "Messages that `builds` could route to no queue, by outcome: rerouted (a binding or queue was missing), "
    "dead_lettered (the routing key is wrong).",
    ["outcome"],
    registry=REGISTRY,
)
REQUESTS_NOT_LOGGED = Counter(
    "rabbit2docker_requests_not_logged_total",
    "Requests without a copy in the stream builds.requests.log, because the stream or its exchange was missing.",
    registry=REGISTRY,
)
DEAD_LETTERS_REFUSED = Counter(
    "rabbit2docker_dead_letters_refused_total",
    "Messages that builds.dead did not take; each waits on the retry ladder for another try.",
    registry=REGISTRY,
)
KUBERNETES_CALLS = Counter(
    "rabbit2docker_kubernetes_calls_total",
    "Requests to the Kubernetes API server, by verb and HTTP status; error if there was no answer.",
    ["verb", "result"],
    registry=REGISTRY,
)
KUBERNETES_LISTS = Counter(
    "rabbit2docker_kubernetes_lists_total",
    "List calls that started or renewed a watch; more than a few an hour mean that watches are lost.",
    ["watch"],
    registry=REGISTRY,
)
KUBERNETES_WATCH_AGE = Gauge(
    "rabbit2docker_kubernetes_watch_age_seconds",
    "Seconds since the last event of a watch, bookmarks included, which arrive about once a minute.",
    ["watch"],
    registry=REGISTRY,
)
KUBERNETES_LOG_STREAMS = Gauge(
    "rabbit2docker_kubernetes_log_streams", "Logs of build pods being followed.", registry=REGISTRY
)
DEPENDENCIES_AWAY = Gauge(
    "rabbit2docker_dependencies_away",
    "What requests or builds need and wait for, by kind: engine, executor, registry, host (of repositories).",
    ["kind"],
    registry=REGISTRY,
)
HOST_REQUESTS_LEFT = Gauge(
    "rabbit2docker_host_requests_left",
    "Requests that the API of a provider's host still takes from this service until its limit is reset, by the credential "
    "that they are made with: `token` or `none`. Hosts that requests name are `other`.",
    ["provider", "host", "credential"],
    registry=REGISTRY,
)
REGISTRY_REQUESTS_LEFT = Gauge(
    "rabbit2docker_registry_requests_left",
    "Requests or pulls that a registry says are left to this service, such as Docker Hub does.",
    ["registry"],
    registry=REGISTRY,
)
ENGINE_DISK = Gauge(
    "rabbit2docker_engine_disk_bytes",
    "Bytes on the disk of a Docker engine whose disk is limited, by kind: images, cache (that is in no image), and free and "
    "size of the disk, as far as it can be seen.",
    ["kind"],
    registry=REGISTRY,
)
ENGINE_DISK_EXCESS = Gauge(
    "rabbit2docker_engine_disk_excess_bytes",
    "Bytes above the limits of the engine's disk that the last cleaning could not free: they are in use, or of others.",
    registry=REGISTRY,
)
ENGINE_DISK_FREED = Counter(
    "rabbit2docker_engine_disk_freed_bytes_total",
    "Bytes of images and build cache that cleanings have freed.",
    registry=REGISTRY,
)
ENGINE_IMAGES = Gauge("rabbit2docker_engine_images", "Images that the engine has.", registry=REGISTRY)
ENGINE_IMAGES_REMOVED = Counter(
    "rabbit2docker_engine_images_removed_total", "Images that cleanings have removed.", registry=REGISTRY
)
ENGINE_OLDEST_IMAGE = Gauge(
    "rabbit2docker_engine_oldest_image_timestamp_seconds",
    "Time of the last use of the image that the last cleaning would have removed next; 0 before the first one.",
    registry=REGISTRY,
)
REPLICAS = Gauge("rabbit2docker_replicas", "Live replicas, as seen by this one.", registry=REGISTRY)
HUB_VIEWERS = Gauge(
    "rabbit2docker_hub_viewers",
    "Open event streams of the hub service.",
    registry=REGISTRY,
)
HUB_STREAMS = Counter(
    "rabbit2docker_hub_streams_total",
    "Ended event streams, by end: ready, failed, refused, unavailable, left, stalled, restart, interrupted, ended, error.",
    ["end"],
    registry=REGISTRY,
)
HUB_WEBHOOKS = Counter(
    "rabbit2docker_hub_webhooks_total",
    "Deliveries of push webhooks, by outcome: requested, ignored (nothing to build, or received before), rejected.",
    ["host", "outcome"],
    registry=REGISTRY,
)
HUB_COMMIT_STATUSES = Counter(
    "rabbit2docker_hub_commit_statuses_total",
    "Calls that write a commit status, by outcome: written, postponed (tried again later), refused (the host does not accept "
    "it), given_up (after too many tries).",
    ["host", "outcome"],
    registry=REGISTRY,
)
HUB_REQUESTS = Counter(
    "rabbit2docker_hub_requests_total",
    "Build requests at the hub service, by outcome: asked, shared (with an identical recent request), resumed, "
    "unavailable (RabbitMQ was away).",
    ["outcome"],
    registry=REGISTRY,
)
HUB_REJECTIONS = Counter(
    "rabbit2docker_hub_rejections_total",
    "Requests that a limit of the hub service rejected, by limit: rate, network, token, viewers.",
    ["limit"],
    registry=REGISTRY,
)
HUB_STORE_BEHIND = Gauge(
    "rabbit2docker_hub_store_behind_seconds",
    "Age of the oldest received event that is not in the hub's store yet; 0 if there is none.",
    registry=REGISTRY,
)
BINDERHUB_BUILD_SECONDS = Histogram(
    "binderhub_build_time_seconds",
    "As in BinderHub: seconds from the acceptance of a build to its end, by status: success, failure, cancelled.",
    ["status"],
    registry=REGISTRY,
    buckets=_BINDERHUB_BUCKETS,
)
BINDERHUB_BUILDS = Counter(
    "binderhub_build_count_total",
    "As in BinderHub: ended builds. Without its label `repo`, which has a value for every repository.",
    ["status", "provider"],
    registry=REGISTRY,
)
BINDERHUB_IN_PROGRESS = Gauge(
    "binderhub_inprogress_builds",
    "As in BinderHub: running builds, as seen by the instance that writes the store; 0 in the others.",
    registry=REGISTRY,
)
WATCHDOG_RECONNECTS = Counter(
    "rabbit2docker_watchdog_reconnects_total",
    "Reconnects because a channel had died without a notice.",
    registry=REGISTRY,
)


def render() -> bytes:
    """Return the exposition text of all metrics."""
    return generate_latest(REGISTRY)


def preset(outcomes: Iterable[str]) -> None:
    """Create the series of these intake outcomes at zero, so that a rate covers the first one."""
    for outcome in outcomes:
        REQUESTS_SETTLED.labels(outcome=outcome)
