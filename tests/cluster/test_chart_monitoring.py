"""Alerts, dashboard and monitors of the chart: they speak of metrics that exist, and each alert fires when it should."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy.helm import schema

from rabbit2docker.metrics import REGISTRY
from tests.cluster.rendering import NAME, NAMESPACE, Objects, Values, refusal, render
from tests.support.promtool import promtool

EVERYTHING_ON: Values = {
    "hubService": {"enabled": True},
    "monitoring": {
        "rules": {"enabled": True, "runbookUrl": "https://docs.example.org/alerts"},
        "dashboard": {"enabled": True},
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    },
}
RUNBOOK = schema.CHART.parents[2] / "docs" / "how-to" / "alerts.md"
ADDED_BY_PROMETHEUS = {"namespace", "pod"}
_SERIES = re.compile(r"((?:rabbit2docker|binderhub)_\w+)(?:\{([^}]*)\})?")
_GROUPING = re.compile(r"\bby \(([^)]*)\)")

# For each alert, the series that make it fire, as promtool writes them: one sample a minute for two hours.
FIRING = {
    "Rabbit2dockerNoConsumer": ['rabbit2docker_amqp_connected{role="publish"} 1x120'],
    "Rabbit2dockerDisconnected": ['rabbit2docker_amqp_connected{role="consume"} 0x120'],
    "Rabbit2dockerBrokerBlocked": ["rabbit2docker_amqp_blocked 1x120"],
    "Rabbit2dockerTopologyIncomplete": ["rabbit2docker_topology_problems 2x120"],
    "Rabbit2dockerMessagesLost": ['rabbit2docker_messages_lost_total{queue="builds.requests"} _x100 3x20'],
    "Rabbit2dockerQueueOld": ['rabbit2docker_queue_age_seconds{queue="builds.requests"} 0+60x120'],
    "Rabbit2dockerDeadLetters": ['rabbit2docker_queue_messages{queue="builds.dead"} 1x120'],
    "Rabbit2dockerWatchSilent": ['rabbit2docker_kubernetes_watch_age_seconds{watch="pods"} 0+60x120'],
    "Rabbit2dockerReplicasFlapping": ["rabbit2docker_replicas " + "2 1 " * 60],
    "Rabbit2dockerDependencyAway": ['rabbit2docker_dependencies_away{kind="registry"} 1x120'],
    "Rabbit2dockerInfrastructureFails": [
        'rabbit2docker_builds_ended_total{result="engine_error"} 0+1x120',
        'rabbit2docker_builds_ended_total{result="completed"} 0+2x120',
    ],
    "Rabbit2dockerMisconfigured": ['rabbit2docker_builds_ended_total{result="push_denied"} _x110 1x10'],
    "Rabbit2dockerEngineDiskFull": ['rabbit2docker_attempts_retried_total{reason="disk_full"} _x110 1x10'],
    "Rabbit2dockerEngineDiskOverLimit": ["rabbit2docker_engine_disk_excess_bytes 1048576x120"],
    "Rabbit2dockerHubDisconnected": ['rabbit2docker_amqp_connected{role="hub"} 0x120'],
    "Rabbit2dockerStoreBehind": ["rabbit2docker_hub_store_behind_seconds 0+30x120"],
    "Rabbit2dockerHubEventsMissed": ['rabbit2docker_hub_events_missed_total{tenant="hub-a"} 0x100 0+1x20'],
}
HEALTHY = [
    'rabbit2docker_amqp_connected{role="consume"} 1x120',
    'rabbit2docker_amqp_connected{role="publish"} 1x120',
    'rabbit2docker_amqp_connected{role="hub"} 1x120',
    "rabbit2docker_amqp_blocked 0x120",
    "rabbit2docker_topology_problems 0x120",
    'rabbit2docker_messages_lost_total{queue="builds.requests"} 3x120',
    'rabbit2docker_queue_age_seconds{queue="builds.requests"} 30x120',
    'rabbit2docker_queue_age_seconds{queue="builds.requests.bulk"} 9000x120',
    'rabbit2docker_queue_messages{queue="builds.dead"} 0x120',
    'rabbit2docker_queue_messages{queue="builds.requests"} 40x120',
    'rabbit2docker_kubernetes_watch_age_seconds{watch="pods"} 50x120',
    "rabbit2docker_replicas 2x100 3 2 3 2x17",
    'rabbit2docker_dependencies_away{kind="host"} 1x120',
    'rabbit2docker_builds_ended_total{result="engine_error"} 0+0.1x120',
    'rabbit2docker_builds_ended_total{result="completed"} 0+2x120',
    'rabbit2docker_builds_ended_total{result="build_step_failed"} 0+5x120',
    'rabbit2docker_builds_ended_total{result="push_denied"} 7x120',
    'rabbit2docker_attempts_retried_total{reason="evicted"} 0+1x120',
    "rabbit2docker_engine_disk_excess_bytes 0x120",
    "rabbit2docker_hub_store_behind_seconds 5x120",
    'rabbit2docker_hub_events_missed_total{tenant="hub-a"} 4x120',
]


@pytest.fixture(scope="module")
def objects() -> Objects:
    return render(EVERYTHING_ON)


@pytest.fixture(scope="module")
def rules(objects: Objects) -> Any:
    return objects["PrometheusRule", NAME]["spec"]


def alerts(rules: Any) -> dict[str, Any]:
    return {rule["alert"]: rule for group in rules["groups"] for rule in group["rules"]}


def known_series() -> dict[str, set[str]]:
    """Return the names of all series of /metrics with their labels."""
    found: dict[str, set[str]] = {}
    for collector, names in REGISTRY._collector_to_names.items():
        own = set(getattr(collector, "_labelnames", ()))
        for name in names:
            found[name] = own | ({"le"} if name.endswith("_bucket") else set())
    return found


def mistakes(expression: str, known: dict[str, set[str]]) -> Iterator[str]:
    """Yield what a query names although no metric has it."""
    labels: set[str] = set()
    for name, matchers in _SERIES.findall(expression):
        if name not in known:
            yield f"there is no series {name}"
            continue
        own = known[name] | ADDED_BY_PROMETHEUS
        used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", matchers or ""))
        yield from (f"{name} has no label {label}" for label in sorted(used - own))
        labels |= own
    grouped = {word.strip() for group in _GROUPING.findall(expression) for word in group.split(",")}
    yield from (f"no series has the label {label}" for label in sorted(grouped - labels))


def queries(dashboard: Any) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]


def test_alerts_use_series_and_labels_that_exist(rules: Any) -> None:
    known = known_series()
    found = {name: list(mistakes(rule["expr"], known)) for name, rule in alerts(rules).items()}
    assert not {name: wrong for name, wrong in found.items() if wrong}


def test_the_dashboard_uses_series_and_labels_that_exist(objects: Objects) -> None:
    dashboard = json.loads(objects["ConfigMap", f"{NAME}-dashboard"]["data"]["rabbit2docker.json"])
    known = known_series()

    assert [wrong for query in queries(dashboard) for wrong in mistakes(query, known)] == []
    assert len(queries(dashboard)) >= 20
    assert objects["ConfigMap", f"{NAME}-dashboard"]["metadata"]["labels"]["grafana_dashboard"] == "1"


@pytest.mark.parametrize(
    ("query", "mistake"),
    [
        ("rabbit2docker_build_live > 1", "there is no series rabbit2docker_build_live"),
        ('rabbit2docker_queue_messages{queues="x"}', "rabbit2docker_queue_messages has no label queues"),
        ("sum by (reason) (rabbit2docker_builds_ended_total)", "no series has the label reason"),
    ],
)
def test_a_renamed_metric_or_label_is_noticed(query: str, mistake: str) -> None:
    assert list(mistakes(query, known_series())) == [mistake]


def in_namespace(series: str, pod: str) -> dict[str, str]:
    """Return a series as Prometheus has it, with its values."""
    name, _, values = series.partition(" ")
    metric, _, own = name.partition("{")
    own = own.rstrip("}") + ", " if own else ""
    return {"series": f'{metric}{{{own}namespace="{NAMESPACE}", pod="{pod}"}}', "values": values}


def fired(series: list[str], expected: list[str]) -> dict[str, Any]:
    """Return a test of promtool: exactly these alerts fire after two hours."""
    return {
        "interval": "1m",
        "input_series": [in_namespace(one, f"pod-{number}") for number, one in enumerate(series)],
        "promql_expr_test": [
            {
                "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
                "eval_time": "119m",
                "exp_samples": [
                    {"labels": f'{{alertname="{name}"}}', "value": 1} for name in sorted(set(expected))
                ],
            }
        ],
    }


def run_promtool(directory: Path, rules: Any, tests: list[dict[str, Any]]) -> str:
    (directory / "rules.yaml").write_text(yaml.safe_dump(rules))
    file = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}
    (directory / "tests.yaml").write_text(yaml.safe_dump(file))
    result = subprocess.run(
        [promtool(), "test", "rules", "tests.yaml"],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return result.stdout + result.stderr if result.returncode else ""


def test_each_alert_fires_on_its_own_and_none_on_a_healthy_day(rules: Any, tmp_path: Path) -> None:
    consumes = HEALTHY[0]
    tests = [fired(HEALTHY, [])]
    for name, series in FIRING.items():
        others = [] if name in ("Rabbit2dockerNoConsumer", "Rabbit2dockerDisconnected") else [consumes]
        also = ["Rabbit2dockerNoConsumer"] if name == "Rabbit2dockerDisconnected" else []
        tests.append(fired([*series, *others], [name, *also]))

    assert run_promtool(tmp_path, rules, tests) == ""
    assert set(FIRING) == set(alerts(rules))


def test_every_reason_that_an_operator_or_the_platform_can_act_on_is_watched(rules: Any) -> None:
    expected = yaml.safe_load(schema.REASONS.read_text())
    assert schema.REASONS.read_text() == schema.reasons(), "run python -m deploy.helm.schema"
    for alert, category in (("InfrastructureFails", "infrastructure"), ("Misconfigured", "operator")):
        expression = alerts(rules)[f"Rabbit2docker{alert}"]["expr"]
        assert f'result=~"{"|".join(expected[category])}"' in expression


def test_every_alert_has_a_section_of_the_runbook(rules: Any) -> None:
    sections = re.findall(r"^## (Rabbit2docker\w+)$", RUNBOOK.read_text(), re.MULTILINE)

    assert sections == list(alerts(rules))
    for name, rule in alerts(rules).items():
        assert rule["annotations"]["runbook_url"] == f"https://docs.example.org/alerts#{name.lower()}"


def test_alerts_can_be_labelled_and_left_out() -> None:
    values = {
        "monitoring": {
            "rules": {"disabled": ["Rabbit2dockerDeadLetters"], "additionalLabels": {"team": "hubs"}}
        }
    }
    found = alerts(render(EVERYTHING_ON, values)["PrometheusRule", NAME]["spec"])

    assert "Rabbit2dockerDeadLetters" not in found
    assert {rule["labels"]["team"] for rule in found.values()} == {"hubs"}
    alone = {"consumer": {"enabled": False}, "dockerApi": {"enabled": False}}
    only_hub = alerts(render(EVERYTHING_ON, alone)["PrometheusRule", NAME]["spec"])
    assert "Rabbit2dockerNoConsumer" not in only_hub, "the consumers are another release"


@pytest.mark.parametrize("kind", ["ServiceMonitor", "PodMonitor"])
def test_monitors_choose_the_services_or_pods_and_their_paths(kind: str) -> None:
    name = kind[0].lower() + kind[1:]
    objects = render({"hubService": {"enabled": True}, "monitoring": {name: {"enabled": True}}})
    for monitored, path, service in (
        (NAME, "/metrics", NAME),
        (f"{NAME}-hub", "/services/binder/metrics", f"hub-{NAME}"),
    ):
        spec = objects[kind, monitored]["spec"]
        [endpoint] = spec["endpoints" if kind == "ServiceMonitor" else "podMetricsEndpoints"]
        pods = objects["Deployment", monitored]["spec"]["template"]
        labelled = objects["Service", service] if kind == "ServiceMonitor" else pods
        assert spec["selector"]["matchLabels"].items() <= labelled["metadata"]["labels"].items()
        assert (endpoint["port"], endpoint["path"]) == ("http", path)
        ports = [port["name"] for container in pods["spec"]["containers"] for port in container["ports"]]
        assert endpoint["port"] in ports


def test_nothing_for_prometheus_or_grafana_is_there_unless_asked_for() -> None:
    kinds = {kind for kind, _ in render()}
    assert not kinds & {"PrometheusRule", "ServiceMonitor", "PodMonitor"}
    assert "needs service.enabled" in refusal(EVERYTHING_ON, {"service": {"enabled": False}})


@pytest.mark.parametrize(
    "values",
    [
        {"monitoring": {"prometheusRule": {"enabled": True}}},
        {"monitoring": {"rules": {"disabled": ["Rabbit2docker DeadLetters", "dead"]}}},
        {"monitoring": {"serviceMonitor": {"interval": "often"}}},
        {"monitoring": {"rules": {"runbookUrl": "docs"}}},
    ],
    ids=str,
)
def test_unknown_and_impossible_values_are_refused(values: Values) -> None:
    assert "don't meet the specifications of the schema" in refusal(values)
