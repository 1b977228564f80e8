"""Phases inside SGLang's trace of a request, as a collector receives them."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from specvlm_sglang.report.phases import PHASES
from specvlm_sglang.tools import demo
from specvlm_sglang.tools.launch import specvlm_arguments
from tests.support.messages import user
from tests.support.server import Server

service = pytest.importorskip(
    "opentelemetry.proto.collector.trace.v1.trace_service_pb2",
    reason="no OpenTelemetry here: `uv sync --group trace`",
)
pytestmark = [pytest.mark.serving, pytest.mark.slow]

SECONDS = 60.0


class Collector:
    """Receives spans over HTTP, as OpenTelemetry's collector does."""

    def __init__(self) -> None:
        spans: list[Any] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                request = service.ExportTraceServiceRequest.FromString(body)
                for resource in request.resource_spans:
                    for scope in resource.scope_spans:
                        spans.extend(scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.spans = spans
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1/traces"

    def ours(self) -> list[Any]:
        """Spans of SPECVLM's phases so far."""
        return [span for span in list(self.spans) if span.name.startswith("specvlm_")]


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()
    yield found
    found.server.shutdown()


def attributes(span: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


def test_every_phase_is_a_span_within_the_requests_own_trace(
    tmp_path: Path, collector: Collector
) -> None:
    clip = tmp_path / "clip.mp4"
    scene = demo.make_clip(clip, 9_000_000_000)
    launch = (
        *specvlm_arguments(demo.draft_path(), steps=3),
        *("--enable-trace", "--otlp-traces-endpoint", collector.url),
    )
    protocol = {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}
    with Server(demo.target_path(), *launch, log=tmp_path / "server.log", env=protocol) as server:
        deadline = time.monotonic() + SECONDS
        collector.spans.clear()
        answer = server.chat(
            user(clip, demo.description(scene)[0]), max_tokens=48, return_meta_info=True
        )
        rounds = answer.raw["choices"][0]["meta_info"]["spec_verify_ct"]
        wanted = {f"specvlm_{phase}" for phase in PHASES}

        def is_whole() -> bool:
            spans = collector.ours()
            verified = [span for span in spans if span.name == "specvlm_verify"]
            return {span.name for span in spans} >= wanted and len(verified) >= rounds

        while not is_whole() and time.monotonic() < deadline:
            time.sleep(0.5)
        spans = collector.ours()
    assert {span.name for span in spans} == wanted
    # The request with a video has one trace, with SGLang's own spans in it.
    (trace,) = {span.trace_id for span in spans if span.name == "specvlm_draft_vision"}
    own = [span for span in spans if span.trace_id == trace]
    every = [span for span in collector.spans if span.trace_id == trace]
    assert {span.name for span in own} == wanted
    assert len(every) > len(own)
    assert len([span for span in own if span.name == "specvlm_verify"]) == rounds
    parents = {span.span_id for span in every}
    assert all(span.parent_span_id in parents for span in own)
    (root,) = [span for span in every if not span.parent_span_id]
    for span in own:
        inside = root.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert inside, span.name
        told = attributes(span)
        lasted = (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
        assert 0 <= told["seconds"] <= lasted + 1e-3
        assert told["requests"] == 1
