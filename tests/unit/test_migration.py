"""Values of binderhub-service and BinderHub, translated by `rabbit2docker migrate`."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from deploy.helm import schema
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator

from rabbit2docker.cli import main
from rabbit2docker.cli.exits import Exit
from rabbit2docker.migration import access, binderhub, chart, credentials
from rabbit2docker.migration import settings as binderhub_settings
from rabbit2docker.migration.files import migrate
from rabbit2docker.migration.values_files import leaves, merged

EXAMPLES = Path(__file__).parent / "migration"
CASES = {
    "basehub": ("basehub.yaml", "basehub.hub.yaml"),
    "standalone": ("standalone.yaml",),
    "authenticated": ("authenticated.yaml",),
    "binderhub": ("binderhub.yaml",),
}
IMAGE = "registry.example.org/rabbit2docker"
SECRET = "hunter2"
VALID = Draft7Validator(schema.values_schema())
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `rabbit2docker migrate` where the examples are."""
    monkeypatch.chdir(EXAMPLES)

    def migrated(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["rabbit2docker", "migrate", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        output = capsys.readouterr()
        return int(end.value.code or 0), output.out, output.err

    return migrated


def section(values: Any) -> Any:
    return values.get("rabbit2docker", values)


def assert_valid(values: Any) -> None:
    problems = [f"{'.'.join(map(str, each.path))}: {each.message}" for each in VALID.iter_errors(values)]
    assert not problems


@pytest.mark.parametrize("name", CASES)
def test_the_values_of_deployments_are_translated_as_recorded(name: str, run: Run) -> None:
    """A changed record is made with `rabbit2docker migrate … --image registry.example.org/rabbit2docker`."""
    code, values, report = run(*CASES[name], "--image", IMAGE)

    assert not code
    assert values == (EXAMPLES / f"{name}.expected.yaml").read_text()
    assert report == (EXAMPLES / f"{name}.report.txt").read_text()


@pytest.mark.parametrize("name", CASES)
def test_translations_satisfy_the_charts_schema_and_keep_names_of_images(name: str) -> None:
    old: Any = merged([yaml.safe_load((EXAMPLES / file).read_text()) for file in CASES[name]])
    old = old.get("binderhub-service", old.get("binderhub", old))

    values = section(yaml.safe_load((EXAMPLES / f"{name}.expected.yaml").read_text()))

    assert_valid(values)
    assert values["config"]["images"]["prefix"] == old["config"]["BinderHub"]["image_prefix"]


@pytest.mark.parametrize("name", CASES)
def test_no_secret_is_printed(name: str, run: Run) -> None:
    assert any(SECRET in (EXAMPLES / file).read_text() for file in CASES[name])

    for options in ((), ("--json",)):
        _, values, report = run(*CASES[name], *options)
        assert SECRET not in values + report


def test_the_json_form_has_values_and_remarks(run: Run) -> None:
    code, output, report = run(*CASES["basehub"], "--json")

    found = json.loads(output)
    assert not code
    assert not report
    assert found["section"] == "binderhub-service"
    assert found["values"]["rabbit2docker"]["enabled"] is True
    assert {secret["name"] for secret in found["secrets"]} == {
        "rabbitmq",
        credentials.PUSH,
        credentials.GITHUB,
    }
    assert {"path": "extraConfig.01-set-push-secret"}.items() <= found["left_out"][0].items()


def test_what_is_left_out_fails_a_strict_translation(run: Run, tmp_path: Path) -> None:
    complete = tmp_path / "complete.yaml"
    complete.write_text("config: {BinderHub: {image_prefix: registry.example.org/r2d-}}")

    assert run(str(complete), "--strict")[0] == Exit.COMPLETED
    assert run("standalone.yaml", "--strict")[0] == Exit.FAILED


@pytest.mark.parametrize(
    ("text", "options", "reason"),
    [
        ("jupyterhub: {}", (), "There are no values of binderhub-service"),
        (
            "hubService: {enabled: true}\nconfig: {BinderHub: {}}",
            (),
            "There are no values of binderhub-service",
        ),
        (
            "a: {binderhub: {}}\nb: {binderhub-service: {}}",
            (),
            "a.binderhub, b.binderhub-service. Choose one",
        ),
        ("a: {binderhub: {}}", ("--section=a.binder",), "There is no section a.binder"),
        ("- a\n- b", (), "at its top is a list, not a mapping"),
        ("password: 'hunter2\nconfig: [", (), "is not YAML: found unexpected end of stream, in line 2"),
        ("\x00", (), "characters that YAML does not allow"),
    ],
)
def test_other_files_are_refused_with_a_reason(
    text: str, options: tuple[str, ...], reason: str, run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(text)

    code, values, report = run(str(file), *options)

    assert code == Exit.USAGE
    assert not values
    assert reason in report
    assert SECRET not in report


def test_a_file_that_cannot_be_read_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9")

    assert "absent.yaml cannot be read: No such file" in run("absent.yaml")[2]
    assert "latin.yaml is not UTF-8" in run(str(tmp_path / "latin.yaml"))[2]


def test_a_section_is_found_where_it_is_below_others_and_put_at_its_place() -> None:
    text = "daskhub: {basehub: {binderhub-service: {config: {BinderHub: {image_prefix: r.example.org/p-}}}}}"

    found = migrate([("values.yaml", text)], None, image=IMAGE, amqp_secret="rabbitmq")

    assert found.section == ("daskhub", "basehub", "binderhub-service")
    assert found.values["daskhub"]["basehub"]["rabbit2docker"]["config"]["images"] == {
        "prefix": "r.example.org/p-"
    }


KNOWN = sorted(
    {
        f"config.{name}"
        for name in (*binderhub_settings._COPIES, *binderhub_settings._FORMER, *binderhub_settings._LEFT_OUT)
    }
    | set(chart._COPIES)
    | set(chart._LEFT_OUT)
    | set(credentials._ACCOUNTS)
    | {
        f"config.{cls}.{rule}"
        for cls in binderhub_settings.PROVIDERS
        for rule in ("allowed_specs", "git_credentials")
    }
    | {
        "config.BinderHub.auth_enabled",
        "config.BinderHub.base_url",
        "config.BuildExecutor.appendix",
        "extraConfig.01",
    }
    | {
        "dockerApi.extraArgs",
        "dockerApi.extraFiles.daemon",
        "dockerApi.storage.emptyDir.sizeLimit",
        "global",
        "replicas",
    }
    | {
        "config.RepoProvider.banned_specs",
        "config.DockerRegistry.url",
        "extraEnv",
        "buildPodsDockerConfig",
        "unknown.value",
    }
)
SCALARS = st.sampled_from(
    [
        True,
        False,
        0,
        1,
        7,
        -1,
        2.5,
        "",
        "a",
        "10%",
        "/services/binder",
        "https://r.example.org",
        f"ghp_{SECRET * 4}",
    ]
)
JUNK = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["name", "value", "a", "token", "mountPath", "data"]), inner, max_size=3
        )
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.sampled_from(KNOWN), JUNK, max_size=8))
def test_any_values_become_valid_ones_that_hold_no_secret_and_none_is_lost(
    given_values: dict[str, Any],
) -> None:
    old: Any = {}
    for path, value in given_values.items():
        above = old
        *keys, last = path.split(".")
        for key in keys:
            above = above.setdefault(key, {}) if isinstance(above, dict) else {}
        if isinstance(above, dict):
            above[last] = value

    found = binderhub.translate(old, image=IMAGE)

    assert_valid(found.values)
    remarks = json.dumps([[note.path, note.text] for note in (*found.left_out, *found.changed)])
    assert SECRET not in json.dumps(found.values) + remarks


def test_every_known_value_is_copied_used_or_left_out_with_a_reason() -> None:
    """Alone, each leaves a trace: in the new values, in a Secret to create, or in a remark."""
    nothing = traces({})
    for path in sorted({*KNOWN} - {"config.BinderHub.base_url"}):  # its default needs no word
        old: Any = {"a": "text"}
        for key in reversed(path.split(".")):
            old = {key: old}
        assert traces(old) != nothing, path


def traces(old: Any) -> tuple[Any, ...]:
    found = binderhub.translate(old)
    return found.values, sorted(found.secrets), found.left_out, found.changed


def test_leaves_are_what_is_no_mapping() -> None:
    assert list(leaves({"a": {"b": [1], "c": {}}})) == [(("a", "b"), [1]), (("a", "c"), {})]


@pytest.mark.parametrize(
    ("path", "base_url", "name"),
    [("/services/binder", None, None), ("/hubs/a/services/builds/", "/hubs/a", "builds")],
)
def test_the_path_of_a_service_names_the_hub_and_the_service(
    path: str, base_url: str | None, name: str | None
) -> None:
    found = binderhub.translate({"config": {"BinderHub": {"auth_enabled": True, "base_url": path}}})

    jupyterhub = found.values["hubService"].get("jupyterhub", {})
    assert (jupyterhub.get("baseUrl"), jupyterhub.get("serviceName")) == (base_url, name)
    assert access._SERVICE_PATH.fullmatch(path)
