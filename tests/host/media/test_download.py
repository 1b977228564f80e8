"""Downloads end within the configured time, however slowly the other side sends."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests
from sglang.srt.utils import common

from specvlm_sglang.host.media import install
from tests.support import clips
from tests.support.hooks import unhooked
from tests.support.media_hooks import LOADERS

TIME_OUT, SLACK = 1, 2.0
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\n"


@pytest.fixture(autouse=True)
def hooked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("REQUEST_TIMEOUT", str(TIME_OUT))
    monkeypatch.setattr(common, "_mm_http_session", threading.local())
    with unhooked(*LOADERS):
        install.install()
        yield


class Server:
    """Answers each connection with ``send(connection)``, and forgets none."""

    def __init__(self, send: Callable[[socket.socket], None]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}/a.mp4"
        self.ended = threading.Event()
        self._send = send
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection:
            try:
                connection.recv(65536)
                self._send(connection)
            except OSError:
                self.ended.set()

    def close(self) -> None:
        self._listener.close()


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[socket.socket], None]], Server]]:
    servers: list[Server] = []

    def start(send: Callable[[socket.socket], None]) -> Server:
        servers.append(Server(send))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def drip(connection: socket.socket, content: bytes) -> None:
    for byte in content:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


WAYS: dict[str, Callable[[socket.socket], None]] = {
    "headers": lambda one: drip(one, HEAD * 20),
    "a body of a declared length": lambda one: (
        one.sendall(HEAD + b"Content-Length: 4000\r\n\r\n"),
        drip(one, bytes(4000)),
    )[1],
    "a body until the end": lambda one: (
        one.sendall(HEAD + b"Connection: close\r\n\r\n"),
        drip(one, bytes(4000)),
    )[1],
    "chunks": lambda one: (
        one.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n"),
        drip(one, b"1\r\nx\r\n" * 900),
    )[1],
    "nothing": lambda one: time.sleep(30),
    "redirects": lambda one: (
        time.sleep(0.4),
        one.sendall(b"HTTP/1.1 302 Found\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n"),
        one.recv(65536),
        drip(one, HEAD * 20),
    )[3],
}


@pytest.mark.parametrize("way", WAYS)
def test_a_server_that_drips_is_given_up_within_the_time_out(
    way: str, serve: Callable[..., Server]
) -> None:
    server = serve(WAYS[way])
    for load in (common._normalize_video_input, common.get_image_bytes):
        begin = time.monotonic()
        with pytest.raises(requests.exceptions.Timeout, match="within 1 seconds") as caught:
            load(server.url)
        assert time.monotonic() - begin < TIME_OUT + SLACK
        assert isinstance(caught.value, common.CLIENT_MEDIA_EXCEPTIONS)
    if way != "nothing":
        assert server.ended.wait(5), "the connection was left open"


def test_others_go_on_while_one_waits(serve: Callable[..., Server], tmp_path: Path) -> None:
    content = clips.write_clip(tmp_path / "a.mp4").read_bytes()
    length = f"Content-Length: {len(content)}\r\n\r\n".encode()
    slow, quick = (
        serve(WAYS["a body until the end"]),
        serve(lambda one: one.sendall(HEAD + length + content)),
    )
    failed: list[BaseException] = []

    def wait() -> None:
        try:
            common._normalize_video_input(slow.url)
        except requests.exceptions.Timeout as error:
            failed.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    begin = time.monotonic()
    assert common._normalize_video_input(quick.url) == content
    assert time.monotonic() - begin < TIME_OUT
    waiting.join()
    assert failed


def test_a_download_after_one_that_was_given_up_works(serve: Callable[..., Server]) -> None:
    good = serve(lambda one: one.sendall(HEAD + b"Content-Length: 5\r\n\r\nhello"))
    slow = serve(WAYS["headers"])
    for _ in range(2):
        with pytest.raises(requests.exceptions.Timeout):
            common._normalize_video_input(slow.url)
        assert common._normalize_video_input(good.url) == b"hello"
    time.sleep(TIME_OUT)
    assert common._normalize_video_input(good.url) == b"hello"


def test_an_empty_body_is_empty_and_not_late(serve: Callable[..., Server]) -> None:
    server = serve(lambda one: one.sendall(HEAD + b"Content-Length: 0\r\n\r\n"))
    assert common._normalize_video_input(server.url) == b""


def test_more_than_sglangs_own_limit_is_refused(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(common, "_media_url_max_file_size_bytes", 1000)
    for header in (b"Content-Length: 4000\r\n\r\n", b"Connection: close\r\n\r\n"):
        server = serve(lambda one, header=header: one.sendall(HEAD + header + bytes(4000)))
        with pytest.raises(ValueError, match="exceeds the 1000 byte download limit"):
            common._normalize_video_input(server.url)


def test_errors_stay_what_they_are_and_become_short(serve: Callable[..., Server]) -> None:
    missing = serve(lambda one: one.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"))
    with pytest.raises(requests.exceptions.HTTPError, match="404 Client Error") as caught:
        common._normalize_video_input(f"{missing.url}?{'a' * 5000}")
    assert len(str(caught.value)) <= 300


def test_a_refused_connection_keeps_its_own_error() -> None:
    from requests.exceptions import ConnectionError as Refused

    from specvlm_sglang.tools.server import HOST, free_port

    with pytest.raises(Refused):
        common._normalize_video_input(f"http://{HOST}:{free_port()}/clip.mp4")
