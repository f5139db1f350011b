"""Every method and path × every role × no, a wrong, an expired token: who reaches the work, over a real socket."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from rm_api.oip import inference_pb2
from rm_api.v1 import errors_pb2, experiments_pb2, models_pb2, scoring_pb2
from running_server import LOCAL_ONLY, RunningServer, error_of, make_rules_version, running

from rm_server.api.access import Access
from rm_server.api.buckets import Limits
from rm_server.api.calls import Call, Calls
from rm_server.api.roles import Role
from rm_server.api.rpc import Edge, Send
from rm_server.api.tokens import TokenEntry, hash_of
from rm_server.api.tokens_file import add_token
from rm_server.config import AuthSettings
from rm_server.metrics import Metrics
from rm_server.registry.manifest import Manifest, write_manifest

SERVICES = [
    service
    for file in (scoring_pb2, models_pb2, experiments_pb2, inference_pb2, health_pb2, reflection_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
]
METHODS = {f"/{service.full_name}/{method.name}": method for service in SERVICES for method in service.methods}

# Said once more, by hand: a slip in the server's table shall not be a slip here, too.
PUBLIC = {"Check", "Watch", "ServerLive", "ServerReady"}
ADMIN = {"DeleteVersion"}
DEPLOY = {
    *("RegisterVersion", "LoadVersion", "UnloadVersion", "SetLabel", "RemoveLabel", "RollbackLabel", "PromoteVersion"),
    *("SetSplit", "RemoveSplit", "SetPin", "RemovePin", "SetShadow", "RemoveShadow", "GetShadowReport"),
}
SCORE = {
    *("Score", "ScoreStream", "Explain", "ListModels", "GetVersion", "WatchModels", "ListHistory", "GetServerStatus"),
    *("RegisterRun", "RenewLease", "EndRun", "ReportOutcome", "ListRuns", "ListSplits", "ListShadows"),
    *("GetExperimentReport", "ServerReflectionInfo"),
    *("ServerMetadata", "ModelReady", "ModelMetadata", "ModelInfer", "ModelStreamInfer"),
}
if HAS_LIST := "/grpc.health.v1.Health/List" in METHODS:  # from 1.85 of gRPC's health checking on
    SCORE.add("List")
NEEDS = {
    **dict.fromkeys(PUBLIC, Role.PUBLIC),
    **dict.fromkeys(SCORE, Role.SCORE),
    **dict.fromkeys(DEPLOY, Role.DEPLOY),
    **dict.fromkeys(ADMIN, Role.ADMIN),
}
PATHS = {
    "GET /healthz": Role.PUBLIC,
    "GET /readyz": Role.PUBLIC,
    "GET /metrics": Role.PUBLIC,
    "POST /get_reward": Role.SCORE,
    "POST /models/m/get_reward": Role.SCORE,
    "POST /classify": Role.SCORE,
    "POST /models/m@1/classify": Role.SCORE,
}

CALLERS: dict[str, Role | None] = {
    "none": None,
    "wrong": None,
    "expired": None,
    "score": Role.SCORE,
    "deploy": Role.DEPLOY,
    "admin": Role.ADMIN,
}
"""What is shown, and the role that it has. The token is the name."""

ENTRIES = (
    *(TokenEntry(role.word, role, sha256=hash_of(role.word)) for role in (Role.SCORE, Role.DEPLOY, Role.ADMIN)),
    TokenEntry("expired", Role.ADMIN, sha256=hash_of("expired"), expires=datetime.now(UTC) - timedelta(seconds=1)),
    TokenEntry("some-models", Role.ADMIN, sha256=hash_of("some-models"), models=("mine", "our-*")),
    TokenEntry("my-scores", Role.SCORE, sha256=hash_of("my-scores"), models=("mine",)),
    TokenEntry("one-at-once", Role.SCORE, sha256=hash_of("one-at-once"), limits=Limits(max_concurrent_requests=1)),
    TokenEntry("ten-items", Role.SCORE, sha256=hash_of("ten-items"), limits=Limits(max_items_per_s=10.0)),
)


def headers(caller: str) -> tuple[tuple[str, str], ...]:
    return () if caller == "none" else (("authorization", f"Bearer {caller}"),)


class Recorder:
    """Implements every method of every service by noting who reached it."""

    def __init__(self) -> None:
        self.reached: list[tuple[str, str]] = []
        self.entered = asyncio.Event()
        self.go_on = asyncio.Event()
        self.go_on.set()

    def servicer(self, service: Any) -> object:
        return type("Servicer", (), {method.name: self._implementation(method) for method in service.methods})()

    def _implementation(self, method: Any) -> Any:
        answer = GetMessageClass(method.output_type)

        async def unary(servicer: object, request: object, call: Call) -> Any:
            self.reached.append((method.name, call.actor))
            self.entered.set()
            await self.go_on.wait()
            return answer()

        async def server_stream(servicer: object, request: object, call: Call, send: Send) -> None:
            self.reached.append((method.name, call.actor))
            await send(answer())

        async def both_stream(servicer: object, requests: AsyncIterator[Any], call: Call, send: Send) -> None:
            async for request in requests:
                with call.permit.admit(request):
                    self.reached.append((method.name, call.actor))
                    await send(answer())

        return both_stream if method.client_streaming else server_stream if method.server_streaming else unary


class World:
    def __init__(self) -> None:
        self.metrics = Metrics()
        self.access = Access(self.metrics)
        self.access.use(ENTRIES)
        self.recorder = Recorder()

    def refusals(self, reason: str) -> float:
        return self.metrics.registry.get_sample_value("rm_auth_refusals_total", {"reason": reason}) or 0.0

    @asynccontextmanager
    async def channel(self) -> AsyncIterator[grpc.aio.Channel]:
        server, calls = grpc.aio.server(), Calls(self.metrics)
        edge = Edge(calls, self.access)
        server.add_generic_rpc_handlers(
            tuple(edge.handler(service, self.recorder.servicer(service)) for service in SERVICES)
        )
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        calls.open()
        try:
            with grpc.insecure_channel(f"127.0.0.1:{port}", LOCAL_ONLY) as self.waiting_channel:
                async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", LOCAL_ONLY) as channel:
                    yield channel
        finally:
            await server.stop(0)


async def outcome(world: World, name: str, caller: str, request: bytes = b"") -> tuple[Any, str]:
    """Status and details of a call with one request.

    By the client that waits: to the other one it is an error of its own if a stream is refused before it has written.
    """
    method, channel = METHODS[name], world.waiting_channel

    def ask() -> None:
        if method.client_streaming:
            answers = channel.stream_stream(name)(iter([request]), metadata=headers(caller), timeout=30)
            next(answers)
            answers.cancel()
        elif method.server_streaming:
            next(channel.unary_stream(name)(request, metadata=headers(caller), timeout=30))
        else:
            channel.unary_unary(name)(request, metadata=headers(caller), timeout=30)

    try:
        await asyncio.to_thread(ask)
    except grpc.RpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


def expected(needs: Role, has: Role | None) -> grpc.StatusCode:
    if needs is Role.PUBLIC:
        return grpc.StatusCode.OK
    if has is None:
        return grpc.StatusCode.UNAUTHENTICATED
    return grpc.StatusCode.OK if has >= needs else grpc.StatusCode.PERMISSION_DENIED


def test_this_file_knows_every_method() -> None:
    assert set(NEEDS) == {method.name for method in METHODS.values()}


async def test_every_method_and_every_caller() -> None:
    world = World()
    wrong, messages, num_refused = [], set(), 0
    async with world.channel():
        for name, method in METHODS.items():
            for caller, role in CALLERS.items():
                world.recorder.reached.clear()
                code, details = await outcome(world, name, caller)
                right = expected(NEEDS[method.name], role)
                is_permitted = bool(world.recorder.reached)
                if code is not right or is_permitted != (right is grpc.StatusCode.OK):
                    wrong.append((name, caller, code, is_permitted))
                if code is grpc.StatusCode.UNAUTHENTICATED:
                    messages.add(details)
                num_refused += code is not grpc.StatusCode.OK
                actor = "" if NEEDS[method.name] is Role.PUBLIC else caller
                assert all(reached == (method.name, actor) for reached in world.recorder.reached)
    assert not wrong
    assert len(messages) == 1, "no, a wrong and an expired token must be answered alike"
    assert world.refusals("unauthenticated") + world.refusals("permission_denied") == num_refused


async def test_force_is_for_admins() -> None:
    world = World()
    async with world.channel():
        for name, request in (
            ("/rm_api.v1.ModelService/UnloadVersion", models_pb2.UnloadVersionRequest(selector="m@1", force=True)),
            ("/rm_api.v1.ModelService/PromoteVersion", models_pb2.PromoteVersionRequest(model="m", force=True)),
        ):
            raw = request.SerializeToString()
            assert [(await outcome(world, name, caller, raw))[0] for caller in ("score", "deploy", "admin")] == [
                grpc.StatusCode.PERMISSION_DENIED,
                grpc.StatusCode.PERMISSION_DENIED,
                grpc.StatusCode.OK,
            ]
    assert [actor for _, actor in world.recorder.reached] == ["admin", "admin"]


async def test_a_token_for_some_models_touches_no_others() -> None:
    world = World()
    with_model = {
        "/rm_api.v1.ScoringService/Score": lambda m: scoring_pb2.ScoreRequest(model=m),
        "/rm_api.v1.ScoringService/ScoreStream": lambda m: scoring_pb2.ScoreStreamRequest(
            request=scoring_pb2.ScoreRequest(model=m)
        ),
        "/rm_api.v1.ModelService/LoadVersion": lambda m: models_pb2.LoadVersionRequest(selector=m),
        "/rm_api.v1.ModelService/WatchModels": lambda m: models_pb2.WatchModelsRequest(model=m),
        "/rm_api.v1.ExperimentService/SetSplit": lambda m: experiments_pb2.SetSplitRequest(
            split=experiments_pb2.Split(model=m)
        ),
        "/inference.GRPCInferenceService/ModelReady": lambda m: inference_pb2.ModelReadyRequest(name=m),
        "/inference.GRPCInferenceService/ModelStreamInfer": lambda m: inference_pb2.ModelInferRequest(model_name=m),
    }
    async with world.channel():
        for name, request in with_model.items():
            for model, right in (
                ("mine", grpc.StatusCode.OK),
                ("mine@3", grpc.StatusCode.OK),
                ("our-new/one@stable", grpc.StatusCode.OK),
                ("theirs", grpc.StatusCode.PERMISSION_DENIED),
                ("mine2@3", grpc.StatusCode.PERMISSION_DENIED),
                ("", grpc.StatusCode.PERMISSION_DENIED),
            ):
                raw = request(model).SerializeToString()
                assert (await outcome(world, name, "some-models", raw))[0] is right, (name, model)
        assert (await outcome(world, "/rm_api.v1.ModelService/GetServerStatus", "some-models"))[0] is _OK
        if HAS_LIST:
            all_names = await outcome(world, "/grpc.health.v1.Health/List", "some-models")
            assert all_names[0] is grpc.StatusCode.PERMISSION_DENIED


_OK = grpc.StatusCode.OK
SCORE_METHOD = "/rm_api.v1.ScoringService/Score"


async def test_limits_are_refused_with_a_hint_and_given_back() -> None:
    world = World()
    async with world.channel() as channel:
        world.recorder.go_on.clear()
        score = channel.unary_unary(SCORE_METHOD)
        first = score(b"", metadata=headers("one-at-once"))
        async with asyncio.timeout(30):
            await world.recorder.entered.wait()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await score(b"", metadata=headers("one-at-once"))
        world.recorder.go_on.set()
        await first
        await score(b"", metadata=headers("one-at-once"))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        metadata: dict[str, Any] = dict(tuple(caught.value.trailing_metadata() or ()))
        error = errors_pb2.Error.FromString(metadata["rm-error-bin"])
        assert error.reason == errors_pb2.ERROR_REASON_RATE_LIMITED
        assert error.retry_after_seconds > 0

        request = scoring_pb2.ScoreRequest(model="m")
        group = request.groups.add()
        for _ in range(10_000):
            group.completions.add()
        raw = request.SerializeToString()
        assert (await outcome(world, SCORE_METHOD, "ten-items", raw))[0] is _OK
        assert (await outcome(world, SCORE_METHOD, "ten-items", raw))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert world.refusals("rate_limited") == 2


async def test_a_stream_ends_when_its_token_is_revoked() -> None:
    world = World()
    async with world.channel() as channel:
        stream = channel.stream_stream("/rm_api.v1.ScoringService/ScoreStream")(metadata=headers("score"))
        await stream.write(b"")
        assert await stream.read() is not grpc.aio.EOF
        world.access.use([entry for entry in ENTRIES if entry.name != "score"])
        await stream.write(b"")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


# --- the server itself ---


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("roles")
    for entry in ENTRIES:
        add_token(folder / "tokens.toml", entry)
    with running(folder / "home", auth=AuthSettings(tokens=folder / "tokens.toml")) as server:
        yield server


def send_once(channel: grpc.Channel, name: str, caller: str) -> None:
    method = METHODS[name]
    if method.client_streaming:
        list(channel.stream_stream(name)(iter([b""]), metadata=headers(caller), timeout=30))
    elif method.server_streaming:
        list(channel.unary_stream(name)(b"", metadata=headers(caller), timeout=30))
    else:
        channel.unary_unary(name)(b"", metadata=headers(caller), timeout=30)


@pytest.mark.parametrize("name", METHODS)
def test_the_server_guards_every_method_that_it_has(server: RunningServer, name: str) -> None:
    method = METHODS[name]
    if NEEDS[method.name] is Role.PUBLIC:
        return
    for caller in ("none", "wrong", "expired"):
        with pytest.raises(grpc.RpcError) as caught:
            send_once(server.channel, name, caller)
        # A method of the contract that this server does not have yet is closed to everybody.
        assert caught.value.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED)


def test_each_request_of_a_stream_is_held_against_the_token_s_models(server: RunningServer) -> None:
    mine = headers("some-models")
    requests = [
        scoring_pb2.ScoreStreamRequest(id=model, request=scoring_pb2.ScoreRequest(model=model))
        for model in ("mine", "theirs@stable")
    ]
    answers = {answer.id: answer.error.reason for answer in server.scoring.ScoreStream(iter(requests), metadata=mine)}
    assert answers == {
        "mine": errors_pb2.ERROR_REASON_MODEL_NOT_FOUND,
        "theirs@stable": errors_pb2.ERROR_REASON_PERMISSION_DENIED,
    }
    infer = server.channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        inference_pb2.ModelInferRequest.SerializeToString,
        inference_pb2.ModelStreamInferResponse.FromString,
    )
    inferences = [inference_pb2.ModelInferRequest(model_name=model) for model in ("mine", "theirs")]
    is_denied = [
        answer.error_message.startswith("PERMISSION_DENIED") for answer in infer(iter(inferences), metadata=mine)
    ]
    assert is_denied == [False, True]


@pytest.mark.parametrize("path", PATHS)
def test_every_path_and_every_caller(server: RunningServer, path: str) -> None:
    method, _, target = path.partition(" ")
    for caller, role in CALLERS.items():
        connection = http.client.HTTPConnection(server.app.http_address, timeout=30)
        connection.request(method, target, body=b"{}" if method == "POST" else None, headers=dict(headers(caller)))
        status = connection.getresponse().status
        connection.close()
        is_permitted = PATHS[path] is Role.PUBLIC or role is not None
        assert (status not in (401, 403)) == is_permitted, (path, caller, status)


def test_metrics_name_all_models_and_want_a_token_for_all(tmp_path: Path) -> None:
    for entry in ENTRIES:
        add_token(tmp_path / "tokens.toml", entry)
    auth = AuthSettings(tokens=tmp_path / "tokens.toml", metrics_need_token=True)
    with running(tmp_path / "home", auth=auth) as server:

        def status(caller: str) -> int:
            connection = http.client.HTTPConnection(server.app.http_address, timeout=30)
            connection.request("GET", "/metrics", headers=dict(headers(caller)))
            status = connection.getresponse().status
            connection.close()
            return status

        callers = ("none", "expired", "score", "some-models", "my-scores")
        assert {caller: status(caller) for caller in callers} == dict(
            zip(callers, (401, 401, 200, 403, 403), strict=True)
        )


def test_a_watch_ends_when_its_token_is_for_other_models(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens.toml"
    folder = make_rules_version(tmp_path / "v", {"type": "length", "max": 3})

    def use(models: tuple[str, ...]) -> None:
        tokens.unlink(missing_ok=True)
        add_token(tokens, TokenEntry("admin", Role.ADMIN, sha256=hash_of("admin")))
        add_token(tokens, TokenEntry("watcher", Role.SCORE, sha256=hash_of("watcher"), models=models))

    use(("one", "other"))
    with running(tmp_path / "home", auth=AuthSettings(tokens=tokens)) as server:
        request = models_pb2.RegisterVersionRequest(model="one", path=str(folder))
        server.models.RegisterVersion(request, metadata=headers("admin"))
        watched = models_pb2.WatchModelsRequest(model="one")
        changes = server.models.WatchModels(watched, metadata=headers("watcher"), timeout=30)
        assert next(changes).model.name == "one"
        use(("other",))
        server.loop.call_soon_threadsafe(server.app.reload)
        label = models_pb2.SetLabelRequest(model="one", label="stable", version=1, load=True)
        server.models.SetLabel(label, metadata=headers("admin"))
        assert error_of(lambda: list(changes))[0] is grpc.StatusCode.PERMISSION_DENIED


def test_history_names_the_token(server: RunningServer, tmp_path: Path) -> None:
    folder = make_rules_version(tmp_path / "v", {"type": "length", "max": 3, "weight": 0.5})
    request = models_pb2.RegisterVersionRequest(model="ruled", path=str(folder))
    code, _ = error_of(lambda: server.models.RegisterVersion(request, metadata=headers("score")))
    assert code is grpc.StatusCode.PERMISSION_DENIED
    server.models.RegisterVersion(request, metadata=headers("deploy"))
    history = server.models.ListHistory(models_pb2.ListHistoryRequest(model="ruled"), metadata=headers("score"))
    assert {entry.actor for entry in history.entries} == {"deploy"}


def test_readyz_names_what_is_missing_to_those_who_may_know(tmp_path: Path) -> None:
    with running(tmp_path / "home") as server:
        (version,) = server.deploy("theirs", make_rules_version(tmp_path / "v", {"type": "length", "max": 3}))
    rules = tmp_path / "home" / "artifacts" / version.digest / "rules.json"
    rules.chmod(0o644)
    rules.write_text("{}")
    for entry in ENTRIES:
        add_token(tmp_path / "tokens.toml", entry)
    with running(tmp_path / "home", auth=AuthSettings(tokens=tmp_path / "tokens.toml")) as server:

        def missing(caller: str) -> list[dict[str, Any]]:
            connection = http.client.HTTPConnection(server.app.http_address, timeout=30)
            connection.request("GET", "/readyz", headers=dict(headers(caller)))
            response = connection.getresponse()
            assert response.status == 503
            body: dict[str, Any] = json.load(response)
            connection.close()
            return list(body["missing"])

        for caller in ("none", "wrong", "expired", "some-models"):
            assert missing(caller) == [{"state": "FAILED", "reason": "artifact_unreadable"}], caller
        (told,) = missing("score")
        assert (told["model"], told["version"], told["reason"]) == ("theirs", 1, "artifact_unreadable")
        assert str(rules) in told["message"]


def test_a_token_for_some_models_builds_on_no_others(server: RunningServer, tmp_path: Path) -> None:
    def register(model: str, folder: Path, caller: str) -> models_pb2.RegisterVersionResponse:
        request = models_pb2.RegisterVersionRequest(model=model, path=str(folder))
        return server.models.RegisterVersion(request, metadata=headers(caller))

    rule = {"type": "length", "max": 3}
    for weight, model in enumerate(("theirs", "our-rules"), start=5):
        register(model, make_rules_version(tmp_path / model, {**rule, "weight": weight}), "admin")

    def composite_of(version: str) -> Path:
        folder = tmp_path / f"of-{version}"
        folder.mkdir()
        (folder / "composite.json").write_text(json.dumps({"components": [{"name": "part", "version": version}]}))
        write_manifest(folder, Manifest("composite", transform="weighted_sum"))
        return folder

    def adapter(name: str) -> Path:
        folder = tmp_path / name
        (folder / "base").mkdir(parents=True)
        write_manifest(folder, Manifest("lora"))
        return folder

    named = adapter("adapter")
    (named / "base.json").write_text(json.dumps({"version": "theirs@1"}))
    before = {path.name for path in (server.settings.home / "artifacts").iterdir()}
    refused = {
        "'theirs'": (composite_of("theirs@1"), named),
        "'not-there'": (composite_of("not-there@1"),),  # told apart from what is there by nothing
        "'mine-base'": (adapter("with-base"),),
    }
    for model, folders in refused.items():
        for folder in folders:
            code, error = error_of(lambda folder=folder: register("mine", folder, "some-models"))
            assert code is grpc.StatusCode.PERMISSION_DENIED
            assert f"the call concerns the model {model}" in error.message
    assert {path.name for path in (server.settings.home / "artifacts").iterdir()} == before
    assert register("mine", composite_of("our-rules@1"), "some-models").created
    assert register("mine", tmp_path / "of-theirs@1", "admin").created


def test_a_trainer_ends_runs_on_the_models_of_its_token_and_no_others(
    server: RunningServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    deploy, score, mine = headers("deploy"), headers("score"), headers("my-scores")
    for model in ("mine", "theirs"):
        folder = make_rules_version(tmp_path / model, {"type": "length", "max": 3, "weight": len(model)})
        server.models.RegisterVersion(models_pb2.RegisterVersionRequest(model=model, path=str(folder)), metadata=deploy)
        label = models_pb2.SetLabelRequest(model=model, label="stable", version=1, load=True)
        server.models.SetLabel(label, metadata=deploy)
        run = experiments_pb2.RegisterRunRequest(run="exp-17", model=model)
        server.experiments.RegisterRun(run, metadata=score)
    for model in ("theirs", ""):  # empty: all its leases
        request = experiments_pb2.EndRunRequest(run="exp-17", model=model)
        assert error_of(lambda r=request: server.experiments.EndRun(r, metadata=mine))[0] is (
            grpc.StatusCode.PERMISSION_DENIED
        )
    with caplog.at_level("INFO"):
        server.experiments.EndRun(experiments_pb2.EndRunRequest(run="exp-17", model="mine"), metadata=mine)
    (said,) = [record for record in caplog.records if record.message == "a run was ended"]
    assert (said.run, said.model, said.actor) == ("exp-17", "mine", "my-scores")  # type: ignore[attr-defined]
    known = server.experiments.ListRuns(experiments_pb2.ListRunsRequest(), metadata=score).runs
    assert {run.model: run.lease_version for run in known} == {"mine": 0, "theirs": 1}
