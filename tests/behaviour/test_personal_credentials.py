"""A person's own credentials: for the look-up and the build of one request, and deleted with its end."""

import base64
import dataclasses
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import aiohttp
import pytest

from rabbit2docker.client import personal_secret
from rabbit2docker.clock import utc_now
from rabbit2docker.consumer.credentials import GitCredentials, Login, RequestKey
from rabbit2docker.consumer.executors.base import AttemptStatus
from rabbit2docker.consumer.executors.kubernetes import KubernetesExecutor, manifest
from rabbit2docker.consumer.following.follower import Follower
from rabbit2docker.consumer.images.base import ImageInfo
from rabbit2docker.consumer.intake.admission import Admission, AdmissionOutcome
from rabbit2docker.consumer.intake.parsing import IncomingRequest
from rabbit2docker.consumer.providers.catalog import Providers
from rabbit2docker.consumer.service import Service
from rabbit2docker.errors import CredentialsRefused, ExecutorUnavailable, RequestRejected
from rabbit2docker.settings import ExecutorKind, ProviderSettings, Settings, TenantSettings
from rabbit2docker_schemas.ids import RequestId
from rabbit2docker_schemas.reasons import RejectReason
from rabbit2docker_schemas.requests import BuildRequest
from tests.behaviour.test_executors import ONE
from tests.support.kube.objects import SECRETS, stamp
from tests.support.kube.replicas import Replicas
from tests.support.private_git import TOKEN, PrivateGit, private_git
from tests.support.records import NOW, a_spec
from tests.unit import test_admission as admission
from tests.unit import test_follower as follower

NAMESPACE: Final = "personal"
TENANT: Final = "physics"
REQUEST: Final = "request-1"
NAME: Final = personal_secret(REQUEST, tenant=TENANT, host="x", token="x")["metadata"]["name"]
MINE, OTHER, BAD = (f"personal-{sign * 40}" for sign in "abc")


@pytest.fixture(scope="module")
def git(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateGit]:
    with private_git(tmp_path_factory.mktemp("private") / "git") as git:
        yield git


def with_namespace(kube: Replicas) -> Settings:
    personal = {"personal_namespace": NAMESPACE}
    kubernetes = kube.settings.kubernetes.model_copy(update=personal)
    return kube.settings.model_copy(update={"kubernetes": kubernetes, "executor": ExecutorKind.KUBERNETES})


class Stage:
    """A service with a tenant that has no credentials, and the namespace to which its hub may write."""

    def __init__(self, kube: Replicas) -> None:
        self.kube = kube
        self.credentials = GitCredentials({TENANT: TenantSettings(), "biology": TenantSettings()})
        self.executor = KubernetesExecutor(with_namespace(kube), credentials=self.credentials)

    def leave(self, *, age: timedelta = timedelta(), **changes: Any) -> None:
        """Create the Secret as a hub does."""
        given = {"tenant": TENANT, "host": "git.example.org", "token": TOKEN, **changes}
        secret = personal_secret(given.pop("request_id", REQUEST), **given)
        self.kube.cluster.store.create(SECRETS, NAMESPACE, secret)
        at = stamp(self.kube.cluster.store.clock() - age)
        self.edit(lambda data: data["metadata"].update(creationTimestamp=at), secret["metadata"]["name"])

    def edit(self, change: Any, name: str = NAME) -> None:
        self.kube.cluster.store.edit(SECRETS, NAMESPACE, name, change)

    def left(self) -> list[str]:
        found = self.kube.cluster.store._objects[SECRETS].values()
        return [stored.name for stored in found if stored.namespace == NAMESPACE]

    async def refusal(self, tenant: str = TENANT, request_id: str = REQUEST, name: str = NAME) -> str:
        with pytest.raises(CredentialsRefused) as caught:
            await self.credentials.of_request(tenant, request_id, name)
        assert TOKEN not in caught.value.message
        return caught.value.message


@pytest.fixture
async def stage(kube: Replicas) -> AsyncIterator[Stage]:
    stage = Stage(kube)
    async with stage.executor:
        yield stage


def request_with(name: str | None = NAME) -> BuildRequest:
    return BuildRequest(provider="git", spec="x/main", credentials=name)


async def test_the_look_up_reads_what_only_the_person_can(
    stage: Stage, git: PrivateGit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_SSL_CAINFO", str(git.authority))
    repository = git.repository("work")
    spec = f"{quote(repository.url, safe='')}/main"
    stage.leave(host=git.https_host, user=git.user)
    trusted = ssl.create_default_context(cafile=git.authority)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusted)) as session:
        provider = Providers(ProviderSettings(allow_private_addresses=True), session).get("git")
        found = await provider.resolve(spec, await stage.credentials.of_request(TENANT, REQUEST, NAME))
        assert (found.resolved_ref, found.is_private) == (repository.head(), True)
        with pytest.raises(RequestRejected, match="requires a password"):
            await provider.resolve(spec, await stage.credentials.of_request(TENANT, "other", None))


@pytest.mark.parametrize("with_login", [True, False], ids=["tenant", "person"])
async def test_the_build_has_them_as_its_own_secret(stage: Stage, tmp_path: Path, with_login: bool) -> None:
    if with_login:
        (tmp_path / "token").write_text("the-tenants-token")
        tenant = {"git": {"git.example.org": {"token_file": str(tmp_path / "token")}}}
        stage.credentials._tenants[TENANT] = TenantSettings.model_validate(tenant)
    stage.leave()
    spec = a_spec(ONE, tenant=TENANT, request_id=REQUEST, request=request_with())
    await stage.executor.create(spec, AttemptStatus())
    store = stage.kube.cluster.store
    secret = store.get(SECRETS, stage.kube.cluster.namespace, manifest.credentials_name(spec)).data()
    assert base64.b64decode(secret["data"]["login_0"]).decode() == f"username=oauth2\npassword={TOKEN}\n"
    assert "login_1" not in secret["data"]
    assert TOKEN not in json.dumps(stage.kube.cluster.pod(ONE))


async def test_a_build_whose_credentials_are_gone_says_so(stage: Stage) -> None:
    spec = a_spec(ONE, tenant=TENANT, request_id=REQUEST, request=request_with())
    await stage.executor.create(spec, AttemptStatus())
    shown = json.dumps(stage.kube.cluster.pod(ONE)["spec"])
    assert "there is no such Secret for this request" in shown


async def test_they_serve_their_request_alone(stage: Stage) -> None:
    stage.leave()
    assert (await stage.credentials.of_request(TENANT, REQUEST, NAME)).has_login("https://git.example.org/x")
    no_such = "there is no such Secret for this request"
    assert no_such in await stage.refusal(tenant="biology")
    assert no_such in await stage.refusal(request_id="request-2")
    assert no_such in await stage.refusal(name="personal-other")
    stage.edit(lambda data: data["metadata"]["annotations"].clear())
    assert no_such in await stage.refusal()


async def test_another_kind_of_secret_is_not_read(stage: Stage) -> None:
    secret = personal_secret(REQUEST, tenant=TENANT, host="git.example.org", token=TOKEN)
    stage.kube.cluster.store.create(SECRETS, NAMESPACE, {**secret, "type": "Opaque"})
    assert "there is no such Secret" in await stage.refusal()
    await stage.credentials.discard(TENANT, REQUEST, NAME)
    assert stage.left() == [NAME]


@pytest.mark.parametrize(
    "given",
    [
        {"host": "x.helper=!touch /tmp/x;"},
        {"host": "git.example.org\nx"},
        {"host": ""},
        {"token": f"{TOKEN}\nurl=https://other.example"},
        {"token": ""},
        {"user": "me\nhost=other.example"},
    ],
)
async def test_values_that_would_be_settings_of_git_are_refused(stage: Stage, given: dict[str, Any]) -> None:
    stage.leave(**given)
    assert "holds unusual characters" in await stage.refusal()


async def test_an_api_server_that_is_away_is_waited_for(stage: Stage) -> None:
    stage.leave()
    stage.kube.server.faults.answer(503, verb="get", resource="secrets")
    with pytest.raises(ExecutorUnavailable):
        await stage.credentials.of_request(TENANT, REQUEST, NAME)


async def test_what_was_left_behind_is_deleted_by_its_age(stage: Stage) -> None:
    stage.leave(request_id="old", age=timedelta(hours=25))
    stage.leave(request_id="new", age=timedelta(hours=23))
    assert stage.executor._personal
    await stage.executor._personal.sweep(utc_now())
    kept = personal_secret("new", tenant=TENANT, host="x", token="x")
    assert stage.left() == [kept["metadata"]["name"]]


async def test_the_service_looks_up_builds_and_deletes_with_the_same_credentials(kube: Replicas) -> None:
    service = Service(with_namespace(kube))
    service._providers = Providers(ProviderSettings())
    find = admission.Intake().find_image
    supervisor, intake = service._make_supervisor(find), service._make_intake(find)
    executor = service._executor
    assert isinstance(executor, KubernetesExecutor)
    used = {
        id(supervisor._context.credentials),
        id(intake._admission._context.credentials),
        id(executor._config_objects._credentials),
    }
    assert used == {id(service._credentials)}
    assert service._credentials._personal is executor._personal is not None


async def test_without_a_namespace_for_them_requests_are_rejected() -> None:
    with pytest.raises(RequestRejected) as caught:
        await GitCredentials().of_request(TENANT, REQUEST, NAME)
    assert caught.value.reason is RejectReason.NOT_ALLOWED
    assert "kubernetes.personal_namespace" in caught.value.message


# -- when they are deleted


class Recorder:
    """Has credentials for every request, and knows which are still there."""

    def __init__(self) -> None:
        self.discarded: list[str] = []
        self.is_away = False
        self.credentials = GitCredentials()
        self.credentials.use_personal(self)

    async def read(self, key: RequestKey) -> tuple[str, Login]:
        if key.reference == BAD:
            raise CredentialsRefused("They cannot be used.")
        return "git.example.org", Login("oauth2", TOKEN)

    async def discard(self, key: RequestKey) -> None:
        if self.is_away:
            raise ExecutorUnavailable("The API server is away.")
        self.discarded.append(key.request_id)


class Intake(admission.Intake):
    """An admission of requests with credentials of their requesters."""

    def __init__(self) -> None:
        super().__init__()
        self.recorder = Recorder()
        context = dataclasses.replace(self.admission._context, credentials=self.recorder.credentials)
        self.admission = Admission(context)

    async def send(self, id_: str, reference: str = MINE, *, forced: bool = False) -> AdmissionOutcome:
        request = BuildRequest(provider="gh", spec="o/r/HEAD", credentials=reference, force=forced)
        return await self.admission.admit(IncomingRequest("default", RequestId(id_), request, NOW))


async def test_they_are_kept_for_the_build_and_deleted_where_there_is_none() -> None:
    intake = Intake()
    assert await intake.send("first") is AdmissionOutcome.ACCEPTED
    assert await intake.send("first") is AdmissionOutcome.DUPLICATE
    assert intake.recorder.discarded == []
    assert await intake.send("joins") is AdmissionOutcome.ATTACHED
    with pytest.raises(CredentialsRefused):
        await intake.send("refused", BAD)
    intake.image = ImageInfo("sha256:" + "1" * 64, 1)
    intake.world.records.clear()
    intake.recorder.is_away = True
    cached = Intake()
    cached.image, cached.recorder = intake.image, cached.recorder
    assert await cached.send("cached") is AdmissionOutcome.CACHED
    assert (intake.recorder.discarded, cached.recorder.discarded) == (["joins", "refused"], ["cached"])


async def test_a_request_that_is_delivered_again_keeps_those_of_its_build() -> None:
    intake = Intake()
    await intake.send("first", forced=True)
    fresh = Intake()  # a service that does not know the records yet
    fresh.world.records.update(intake.world.records)
    assert await fresh.send("first", forced=True) is AdmissionOutcome.ATTACHED
    assert fresh.recorder.discarded == []


async def test_an_id_that_is_used_again_takes_nothing_from_its_build() -> None:
    intake = Intake()
    await intake.send("first")
    with pytest.raises(RequestRejected, match="was used recently"):
        await intake.send("first", OTHER)
    assert intake.recorder.discarded == []


async def test_answers_do_not_wait_for_a_deletion() -> None:
    intake = Intake()
    await intake.send("first")
    intake.recorder.is_away = True
    assert await intake.send("joins") is AdmissionOutcome.ATTACHED


@pytest.mark.looptime
@pytest.mark.parametrize(("reason", "is_end"), [("build_step_failed", True), ("evicted", False)])
async def test_they_are_deleted_at_the_end_and_not_before_a_further_attempt(
    reason: str, is_end: bool
) -> None:
    bench, recorder = follower.Bench(), Recorder()
    attempt, _ = await bench.executor.create(
        a_spec(follower.NAME, request=request_with(MINE)), AttemptStatus(requests={"r": "digest"})
    )
    bench.attempts.put(attempt)
    bench.world.end(follower.NAME, reason, exit_code=1)
    context = dataclasses.replace(bench.context, credentials=recorder.credentials)
    await Follower(attempt, context).run()
    assert recorder.discarded == ([attempt.spec.request_id] if is_end else [])
