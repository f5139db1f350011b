"""Traces from client to batch, as a collector on loopback receives them over OTLP; and nothing at all when off."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import pytest
from rm_api.v1 import scoring_pb2
from running_server import RunningServer, running, score_request

from ppo_client import RewardClient
from ppo_client.client.trace_context import trace_metadata
from rm_server.config import ConfigError, TracingSettings

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="pip install 'rm-service[otel]'")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import TracerProvider

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
SPAN_ID = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"


class Collector:
    """Takes what is sent to it, as an OpenTelemetry collector does."""

    def __init__(self) -> None:
        self.resources: list[dict[str, Any]] = []
        self.spans: list[Any] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                for part in ExportTraceServiceRequest.FromString(body).resource_spans:
                    collector.resources.append(attributes(part.resource))
                    collector.spans += [span for scope in part.scope_spans for span in scope.spans]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    collector = Collector()
    yield collector
    collector.close()


def attributes(owner: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in owner.attributes}


def traced(home: Path, versions: list[Path], collector: Collector, **settings: Any) -> RunningServer:
    """A server with a version. All spans have arrived when it has been stopped."""
    server = RunningServer(home, tracing=TracingSettings(collector.endpoint, **settings)).start()
    server.deploy("helpfulness", versions[0])
    return server


def test_a_call_and_its_stages_are_spans_of_the_callers_trace(
    tmp_path: Path, versions: list[Path], collector: Collector
) -> None:
    server = traced(tmp_path, versions, collector)
    request = score_request("helpfulness@stable", "one", "two", run="exp-17", request_id="r-1")
    answer = server.scoring.Score(request, metadata=(("traceparent", TRACEPARENT),))
    assert len(answer.results) == 2
    server.stop()
    (call,) = [span for span in collector.spans if span.name == "Score"]
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (TRACE_ID, SPAN_ID)
    seen = attributes(call)
    assert (seen["rm.model"], seen["rm.version"], seen["rm.run"]) == ("helpfulness", 1, "exp-17")
    assert (seen["rm.reason"], seen["rm.request_id"]) == ("ok", "r-1")
    parts = [span for span in collector.spans if span.parent_span_id == call.span_id]
    assert [span.name for span in parts] == ["tokenize", "queue", "compute"]
    assert parts[0].start_time_unix_nano == call.start_time_unix_nano
    for one, next_one in zip(parts, [*parts[1:], None], strict=True):
        assert one.trace_id == call.trace_id
        assert one.start_time_unix_nano <= one.end_time_unix_nano <= call.end_time_unix_nano
        assert next_one is None or one.end_time_unix_nano == next_one.start_time_unix_nano
    assert parts[2].end_time_unix_nano > parts[2].start_time_unix_nano
    assert collector.resources[0]["service.name"] == "rm-server"


def test_calls_over_http_and_streams_are_traced_too_and_probes_are_not(
    tmp_path: Path, versions: list[Path], collector: Collector
) -> None:
    server = traced(tmp_path, versions, collector)
    context = (("traceparent", TRACEPARENT),)
    stream_request = scoring_pb2.ScoreStreamRequest(id="1", request=score_request("helpfulness@stable", "one"))
    list(server.scoring.ScoreStream(iter([stream_request]), metadata=context))
    body = json.dumps({"query": ["a text"], "prompts": ["a"]}).encode()
    url = f"http://{server.app.http_address}/models/helpfulness@stable/get_reward"
    headers = {"content-type": "application/json", "traceparent": TRACEPARENT}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    opener.open(urllib.request.Request(url, body, headers), timeout=60).close()
    opener.open(f"http://{server.app.http_address}/readyz", timeout=60).close()
    server.stop()
    calls = {span.name for span in collector.spans if span.parent_span_id.hex() == SPAN_ID}
    assert calls == {"ScoreStream", "get_reward"}
    assert {span.name for span in collector.spans} - calls <= {
        *("tokenize", "queue", "compute", "RegisterVersion", "LoadVersion", "SetLabel")
    }


def test_a_failed_call_is_a_span_with_its_reason(tmp_path: Path, versions: list[Path], collector: Collector) -> None:
    server = traced(tmp_path, versions, collector)
    with pytest.raises(grpc.RpcError):
        server.score("nobody@stable", "one")
    server.stop()
    (call,) = [span for span in collector.spans if span.name == "Score"]
    assert (call.status.code, call.status.message) == (2, "model_not_found")
    assert "rm.model" not in attributes(call)


def test_the_share_is_of_calls_that_bring_no_trace(tmp_path: Path, versions: list[Path], collector: Collector) -> None:
    server = traced(tmp_path, versions, collector, sample_share=0.0)
    request = score_request("helpfulness@stable", "one")
    server.scoring.Score(request)
    server.scoring.Score(request, metadata=(("traceparent", TRACEPARENT),))
    server.scoring.Score(request, metadata=(("traceparent", "nonsense"),))
    server.stop()
    assert [span.trace_id.hex() for span in collector.spans if span.name == "Score"] == [TRACE_ID]


def test_the_client_hands_on_the_span_that_is_current(
    tmp_path: Path, versions: list[Path], collector: Collector
) -> None:
    server = traced(tmp_path, versions, collector)
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("trainer")
    with RewardClient(server.app.grpc_address) as client:
        with tracer.start_as_current_span("step") as span:
            client.score("helpfulness@stable", prompts=["p"], completions=["one"])
            client.submit("helpfulness@stable", prompts=["p"], completions=["two"]).result()
        client.score("helpfulness@stable", prompts=["p"], completions=["three"])
    server.stop()
    context = span.get_span_context()
    parents = [call.parent_span_id for call in collector.spans if call.name == "Score"]
    own = context.span_id.to_bytes(8, "big")
    assert parents == [own, own, b""]
    assert {call.trace_id for call in collector.spans if call.parent_span_id == own} == {context.trace_id.to_bytes(16)}


def test_without_a_span_the_client_adds_nothing() -> None:
    assert trace_metadata() == ()


def test_a_collector_that_is_away_is_nobodys_trouble(tmp_path: Path, versions: list[Path]) -> None:
    gone = Collector()
    gone.close()
    with running(tmp_path, tracing=TracingSettings(gone.endpoint)) as server:
        server.deploy("helpfulness", versions[0])
        assert server.score("helpfulness@stable", "one").results[0].HasField("score")


def test_nothing_is_imported_when_tracing_is_off() -> None:
    program = (
        "import sys, tempfile, pathlib\n"
        "import rm_server.app as app, ppo_client\n"
        "from rm_server.config import ServeSettings\n"
        "from ppo_client.client.trace_context import trace_metadata\n"
        "assert app._tracing(ServeSettings(pathlib.Path('.')).tracing) is None\n"
        "assert trace_metadata() == ()\n"
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="a URL was expected"):
        TracingSettings("127.0.0.1:4318")
    with pytest.raises(ConfigError, match="between 0 and 1"):
        TracingSettings("http://127.0.0.1:4318/v1/traces", sample_share=2.0)
