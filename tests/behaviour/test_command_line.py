"""The command line as users and scripts see it: output and exit code, of a process where it needs RabbitMQ."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from rabbit2docker.settings import AmqpSettings
from rabbit2docker_schemas.ids import build_id_of
from tests.support.consumer import Consumer, a_request
from tests.support.ports import free_port
from tests.support.programs import COMMAND
from tests.support.rabbitmq import RabbitMQ
from tests.support.waiting import eventually_blocking

pytestmark = [pytest.mark.broker, pytest.mark.xdist_group("command-line")]


@pytest.fixture(scope="module")
def consumer(rabbitmq: RabbitMQ, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consumer]:
    """One consumer for all tests, each of which uses request ids of its own."""
    vhost = rabbitmq.new_vhost()
    amqp = AmqpSettings.model_validate(
        {"url": rabbitmq.url(vhost), "management_url": rabbitmq.management_url}
    )
    consumer = Consumer(tmp_path_factory.mktemp("cli"), amqp)
    consumer.fork = True
    consumer.start_and_wait()
    yield consumer
    consumer.end_everything()
    rabbitmq.delete_vhost(vhost)


def environment(consumer: Consumer | None, **variables: str) -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("RABBIT2DOCKER_")}
    own = {k: v for k, v in consumer.variables.items() if k.startswith("RABBIT2DOCKER_")} if consumer else {}
    return {**inherited, **own, **variables}


def run(consumer: Consumer | None, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [COMMAND, *arguments],
        env=environment(consumer, **variables),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "Traceback" not in result.stderr, result.stderr
    return result


def build_arguments(name: str, **options: object) -> list[str]:
    request = a_request(name, **options)
    arguments = ["build", request.provider, request.spec, "--request-id", name]
    for key, value in request.build_args.items():
        arguments += ["--build-arg", f"{key}={value}"]
    return arguments


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


class TestBuild:
    def test_a_completed_build_exits_with_0_and_its_log_is_on_standard_output(
        self, consumer: Consumer
    ) -> None:
        result = run(consumer, *build_arguments("done", lines=3))
        assert result.returncode == 0
        assert "line 2 of the build\n" in result.stdout
        assert "==> Completed: " in result.stdout
        assert "digest sha256:" in result.stdout

    def test_a_failed_build_exits_with_1_and_says_why(self, consumer: Consumer) -> None:
        result = run(consumer, *build_arguments("broken", fail=3))
        assert result.returncode == 1
        assert (
            "==> Failed (build_step_failed): The step `RUN make it so` ended with exit code 3."
            in result.stdout
        )

    def test_a_rejected_request_exits_with_2_and_says_what_to_do(self, consumer: Consumer) -> None:
        result = run(consumer, "build", "gh", "only/two")
        assert result.returncode == 2
        assert 'Did you mean "only/two/HEAD"?' in result.stdout

    def test_a_cancelled_build_exits_with_3(self, consumer: Consumer) -> None:
        arguments = [str(COMMAND), *build_arguments("taken-back", lines=600, every=0.05)]
        with subprocess.Popen(
            arguments, env=environment(consumer), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as following:
            assert following.stdout is not None
            for line in following.stdout:
                if "line 5 " in line:
                    break
            cancelled = run(consumer, "cancel", "taken-back", "--requester", "ada")
            rest, _ = following.communicate(timeout=300)
        assert cancelled.returncode == 3
        assert "Cancelled by ada" in cancelled.stdout
        assert following.returncode == 3
        assert "==> Cancelled by ada" in rest

    def test_an_unreachable_broker_exits_with_4_and_its_address(self) -> None:
        port = free_port()
        result = run(
            None, "build", "gh", "a/b/c", "--wait", "2", RABBIT2DOCKER_AMQP__URL=f"amqp://127.0.0.1:{port}/"
        )
        assert result.returncode == 4
        assert f"127.0.0.1:{port}" in result.stderr

    def test_json_lines_are_events_from_the_answer_to_the_end(self, consumer: Consumer) -> None:
        result = run(consumer, *build_arguments("events", lines=3), "--json")
        events = json_lines(result.stdout)
        assert {"accepted", "progress", "log", "completed"} <= {event["kind"] for event in events}
        assert events[-1]["kind"] == "completed"
        assert events[-1]["data"]["digest"].startswith("sha256:")
        assert result.stderr == ""

    def test_no_follow_prints_the_ids(self, consumer: Consumer) -> None:
        result = run(consumer, *build_arguments("ids"), "--no-follow", "--json")
        assert result.returncode == 0
        assert json.loads(result.stdout) == {"request_id": "ids", "build_id": build_id_of("default", "ids")}


class TestTerminal:
    def test_a_terminal_shows_log_phase_and_end(self, consumer: Consumer) -> None:
        code, shown = on_a_terminal(consumer, build_arguments("shown", lines=5, every=0.3))
        assert code == 0
        assert "line 4 of the build" in shown
        assert "Completed" in shown
        assert "building" in shown
        assert "Traceback" not in shown

    def test_ctrl_c_leaves_the_build_running_and_says_how_to_resume(self, consumer: Consumer) -> None:
        code, shown = on_a_terminal(
            consumer, build_arguments("left", lines=200, every=0.05), interrupt_at="line 5 "
        )
        assert code == 130
        assert "rabbit2docker logs --follow left" in shown
        assert "Traceback" not in shown
        followed = run(consumer, "logs", "--follow", "left")
        assert followed.returncode == 0
        assert "line 199 of the build" in followed.stdout


def on_a_terminal(consumer: Consumer, arguments: list[str], *, interrupt_at: str = "") -> tuple[int, str]:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [COMMAND, *arguments],
        env=environment(consumer, TERM="xterm", COLUMNS="120"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:
                break  # the other side is closed
            shown += data
            if interrupt_at and interrupt_at.encode() in shown:
                process.send_signal(signal.SIGINT)
                interrupt_at = ""
        os.close(ours)
        return process.wait(300), shown.decode(errors="replace")


class TestViews:
    @pytest.fixture(autouse=True)
    def a_build(self, consumer: Consumer) -> None:
        if run(consumer, "status", "seen").returncode != 0:
            assert run(consumer, *build_arguments("seen", lines=10)).returncode == 0

    def test_list_shows_builds_with_their_whole_ids(self, consumer: Consumer) -> None:
        build_id = build_id_of("default", "seen")
        assert build_id in run(consumer, "list").stdout
        rows = json_lines(run(consumer, "list", "--json", "--state", "completed").stdout)
        assert build_id in [row["id"] for row in rows]
        assert {row["state"] for row in rows} == {"completed"}

    def test_status_accepts_build_and_request_ids(self, consumer: Consumer) -> None:
        for id_ in ("seen", build_id_of("default", "seen")):
            found = json.loads(run(consumer, "status", id_, "--json").stdout)
            assert (found["id"], found["state"]) == (build_id_of("default", "seen"), "completed")

    def test_logs_prints_every_line_with_optional_times_and_numbers(self, consumer: Consumer) -> None:
        lines = [f"line {n} of the build" for n in range(10)]
        plain = run(consumer, "logs", "seen").stdout.splitlines()
        assert [line for line in plain if line.startswith("line ")] == lines
        timed = run(consumer, "logs", "seen", "--timestamps").stdout.splitlines()
        assert [line.partition(" ")[2] for line in timed] == plain
        numbered = json_lines(run(consumer, "logs", "seen", "--json").stdout)
        assert [line["n"] for line in numbered] == list(range(len(plain)))

    def test_a_closed_pipe_is_not_an_error(self, consumer: Consumer) -> None:
        result = subprocess.run(
            ["sh", "-c", f"{COMMAND} logs seen | head -1"],
            env=environment(consumer),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert len(result.stdout.splitlines()) == 1
        assert "Traceback" not in result.stderr
        assert "Exception" not in result.stderr

    @pytest.mark.parametrize("command", ["status", "logs"])
    def test_an_unknown_id_exits_with_5_and_says_where_to_look(
        self, consumer: Consumer, command: str
    ) -> None:
        result = run(consumer, command, "no-such-id")
        assert result.returncode == 5
        assert "rabbit2docker list" in result.stderr


class TestOperators:
    def test_dead_letters_are_listed_shown_redriven_and_discarded(self, consumer: Consumer) -> None:
        script = (
            "import os, pika; c = pika.BlockingConnection(pika.URLParameters(os.environ['U'])).channel();"
            "c.basic_publish('builds', 'request.default.interactive', b'no json')"
        )
        url = consumer.variables["RABBIT2DOCKER_AMQP__URL"]
        subprocess.run([sys.executable, "-W", "ignore", "-c", script], env={"U": url}, check=True)
        [letter] = eventually_blocking(
            lambda: json_lines(run(consumer, "dead-letters", "list", "--json").stdout)
        )
        assert letter["reason"] == "invalid_json"
        listed = run(consumer, "dead-letters", "list").stdout
        assert letter["id"] in listed
        assert "Its body is not JSON." in listed
        assert "no json" in run(consumer, "dead-letters", "show", letter["id"]).stdout
        redriven = run(consumer, "dead-letters", "redrive", letter["id"], "--rate", "20/min")
        assert redriven.stdout == f"{letter['id']} published again\n"
        assert redriven.returncode == 0
        [again] = eventually_blocking(
            lambda: json_lines(run(consumer, "dead-letters", "list", "--json").stdout)
        )
        assert again["body"] == "no json"
        assert run(consumer, "dead-letters", "discard", "--all", "--yes").returncode == 0
        assert "no dead letters" in run(consumer, "dead-letters", "list").stdout
        assert run(consumer, "dead-letters", "show", "nothing").returncode == 5

    def test_topology_is_declared_checked_and_exported(self, consumer: Consumer) -> None:
        assert run(consumer, "topology", "declare").returncode == 0
        assert run(consumer, "topology", "check").returncode == 0
        missing = run(consumer, "topology", "check", "--tenant", "other")
        assert missing.returncode == 1
        assert "builds.results.log.other is missing" in missing.stdout
        definitions = json.loads(run(None, "topology", "export").stdout)
        assert "builds.requests" in {queue["name"] for queue in definitions["queues"]}

    def test_settings_lists_values_without_secrets(self, consumer: Consumer) -> None:
        shown = run(consumer, "settings").stdout
        assert "RABBIT2DOCKER_LIMITS__CONCURRENT_BUILDS" in shown
        assert "guest" not in shown
