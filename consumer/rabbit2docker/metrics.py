"""Every metric of the service: name, help and labels. Labels come from small enums, never from a repository."""

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
"""Our own registry: nothing that a library registers by itself gets in."""

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
"""Content-Type of what `render` returns."""

_BUILD_BUCKETS: Final = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0)
_BINDERHUB_BUCKETS: Final = (60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0)
_FAST_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

REQUESTS_RECEIVED = Counter(
    "rabbit2docker_requests_received_total", "Deliveries taken by intake.", ["queue"], registry=REGISTRY
)
REQUESTS_SETTLED = Counter(
    "rabbit2docker_requests_settled_total",
    "How intake ended: accepted, attached, cached, rejected, retried, stale, error.",
    ["outcome"],
    registry=REGISTRY,
)
REQUESTS_REJECTED = Counter(
    "rabbit2docker_requests_rejected_total", "Rejected requests by reason.", ["reason"], registry=REGISTRY
)
INTAKE_SECONDS = Histogram(
    "rabbit2docker_intake_seconds",
    "Seconds from delivery to acknowledgement.",
    registry=REGISTRY,
    buckets=_FAST_BUCKETS,
)
ACK_FAILURES = Counter(
    "rabbit2docker_ack_failures_total",
    "Acknowledgements that came too late because the channel was gone; the delivery is repeated.",
    registry=REGISTRY,
)
BUILDS_LIVE = Gauge("rabbit2docker_builds_live", "Attempts that take a slot now.", registry=REGISTRY)
BUILDS_FOLLOWED = Gauge(
    "rabbit2docker_builds_followed", "Attempts followed by this replica now.", registry=REGISTRY
)
BUILDS_ENDED = Counter(
    "rabbit2docker_builds_ended_total",
    "Ended builds: completed, cancelled or the failure reason.",
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
    "Further attempts by the reason of the one before.",
    ["reason"],
    registry=REGISTRY,
)
ATTEMPTS_ADOPTED = Counter(
    "rabbit2docker_attempts_adopted_total", "Running attempts taken over at start.", registry=REGISTRY
)
EVENTS_PUBLISHED = Counter(
    "rabbit2docker_events_published_total", "Confirmed events.", ["kind"], registry=REGISTRY
)
EVENT_PUBLISH_SECONDS = Histogram(
    "rabbit2docker_event_publish_seconds",
    "Seconds until an event was confirmed, repetitions included.",
    registry=REGISTRY,
    buckets=_FAST_BUCKETS,
)
EVENT_PUBLISH_RETRIES = Counter(
    "rabbit2docker_event_publish_retries_total", "Publishes that were tried again.", registry=REGISTRY
)
EVENTS_UNROUTED = Counter(
    "rabbit2docker_events_unrouted_total",
    "Events that RabbitMQ had no queue for: a tenant's stream is missing, or RabbitMQ has only just started.",
    registry=REGISTRY,
)
OUTBOX = Gauge("rabbit2docker_outbox_events", "Events waiting for a confirm.", registry=REGISTRY)
AMQP_CONNECTED = Gauge(
    "rabbit2docker_amqp_connected", "1 while the connection is up.", ["role"], registry=REGISTRY
)
AMQP_RECONNECTS = Counter(
    "rabbit2docker_amqp_reconnects_total", "Connections made again.", ["role"], registry=REGISTRY
)
AMQP_BLOCKED = Gauge(
    "rabbit2docker_amqp_blocked",
    "1 while RabbitMQ refuses publishes (memory or disk alarm).",
    registry=REGISTRY,
)
KUBERNETES_CALLS = Counter(
    "rabbit2docker_kubernetes_calls_total",
    "Requests to the Kubernetes API server by verb and HTTP status, or error when there was no answer.",
    ["verb", "result"],
    registry=REGISTRY,
)
KUBERNETES_LISTS = Counter(
    "rabbit2docker_kubernetes_lists_total",
    "Lists that began or renewed a watch: more than a few an hour mean that watches get lost.",
    ["watch"],
    registry=REGISTRY,
)
KUBERNETES_WATCH_AGE = Gauge(
    "rabbit2docker_kubernetes_watch_age_seconds",
    "Seconds since a watch last told something, bookmarks included, which come about once a minute.",
    ["watch"],
    registry=REGISTRY,
)
KUBERNETES_LOG_STREAMS = Gauge(
    "rabbit2docker_kubernetes_log_streams", "Logs of build pods being followed now.", registry=REGISTRY
)
REPLICAS = Gauge("rabbit2docker_replicas", "Replicas that live, as this one sees them.", registry=REGISTRY)
HUB_VIEWERS = Gauge(
    "rabbit2docker_hub_viewers",
    "Viewers to whom the service for a JupyterHub tells a build now.",
    registry=REGISTRY,
)
HUB_STREAMS = Counter(
    "rabbit2docker_hub_streams_total",
    "How viewers' streams ended: ready, failed, refused, unavailable, left, stalled, interrupted, ended, error.",
    ["end"],
    registry=REGISTRY,
)
HUB_REQUESTS = Counter(
    "rabbit2docker_hub_requests_total",
    "Builds that people wanted of the service for a JupyterHub: asked, shared (with a request made a moment ago), "
    "resumed, unavailable (RabbitMQ was away).",
    ["outcome"],
    registry=REGISTRY,
)
HUB_REFUSALS = Counter(
    "rabbit2docker_hub_refusals_total",
    "Requests that a limit of the service for a JupyterHub refused: rate, network, token.",
    ["limit"],
    registry=REGISTRY,
)
HUB_QUEUE_LOOKS = Counter(
    "rabbit2docker_hub_queue_looks_total",
    "How often RabbitMQ was asked how many requests wait, for all viewers who wait together.",
    registry=REGISTRY,
)
HUB_STORE_BEHIND = Gauge(
    "rabbit2docker_hub_store_behind_seconds",
    "Age of the oldest event that has come and is not in the hub's store yet; 0 if there is none.",
    registry=REGISTRY,
)
BINDERHUB_BUILD_SECONDS = Histogram(
    "binderhub_build_time_seconds",
    "BinderHub's: seconds from the acceptance of a build to its end; success, failure or cancelled.",
    ["status"],
    registry=REGISTRY,
    buckets=_BINDERHUB_BUCKETS,
)
BINDERHUB_BUILDS = Counter(
    "binderhub_build_count_total",
    "BinderHub's: ended builds. Without its label `repo`, of which there would be as many as repositories.",
    ["status", "provider"],
    registry=REGISTRY,
)
BINDERHUB_IN_PROGRESS = Gauge(
    "binderhub_inprogress_builds",
    "BinderHub's: builds under way, as the instance sees them that feeds the store; 0 in the others.",
    registry=REGISTRY,
)
WATCHDOG_REBUILDS = Counter(
    "rabbit2docker_watchdog_rebuilds_total",
    "Connections rebuilt because a channel was silently dead.",
    registry=REGISTRY,
)


def render() -> bytes:
    """Return the exposition text of all metrics."""
    return generate_latest(REGISTRY)


def preset(outcomes: Iterable[str]) -> None:
    """Make the series of these intake outcomes exist at zero, so that a rate can be taken from the first one."""
    for outcome in outcomes:
        REQUESTS_SETTLED.labels(outcome=outcome)
