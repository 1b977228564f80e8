"""Downloads that end in time, whatever the other side does.

SGLang looks at its deadline between pieces of 64 KiB, and a socket's time-out begins anew with
every byte: a server that sends a byte a second holds a request for hours. Here a timer shuts the
connection down when the time is over, in headers and body alike.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from specvlm_sglang.host.media.sources import shortened

_running = threading.local()


class _Deadline:
    """The connections of one download, and the timer that ends them."""

    def __init__(self, seconds: float) -> None:
        self.is_over = False
        self._connections: list[Any] = []
        self._sockets: list[Any] = []
        self._lock = threading.Lock()
        self._timer = threading.Timer(seconds, self._end)
        self._timer.daemon = True

    def __enter__(self) -> _Deadline:
        _running.deadline = self
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        _running.deadline = None

    def watch(self, connection: Any) -> None:
        """End this connection with the others."""
        with self._lock:
            self._connections.append(connection)
            # A connection forgets its socket when the answer says that it will close.
            self._sockets.append(connection.sock)
            is_over = self.is_over
        if is_over:
            raise requests.exceptions.Timeout

    def _end(self) -> None:
        with self._lock:
            self.is_over = True
            ended = {*self._sockets, *(one.sock for one in self._connections)} - {None}
        for one in ended:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


class _Watched:
    """A connection that tells the download it serves; mixed into urllib3's classes."""

    def connect(self) -> None:
        _watch(self)
        super().connect()  # type: ignore[misc]

    def request(self, *args: Any, **kwargs: Any) -> None:
        _watch(self)
        super().request(*args, **kwargs)  # type: ignore[misc]

    def getresponse(self) -> Any:
        _watch(self)
        return super().getresponse()  # type: ignore[misc]


def _watch(connection: Any) -> None:
    deadline = getattr(_running, "deadline", None)
    if deadline is not None:
        deadline.watch(connection)


class _HTTPConnection(_Watched, HTTPConnection):
    pass


class _HTTPSConnection(_Watched, HTTPSConnection):
    pass


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


class _Adapter(HTTPAdapter):
    """Requests' adapter over connections that can be ended."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}

    def proxy_manager_for(self, proxy: Any, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        manager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
        return manager


def with_watched_connections(original: Callable[[], Any]) -> Callable[[], Any]:
    """For SGLang's ``get_mm_http_session``: its session, with connections that can be ended."""

    def get_mm_http_session() -> Any:
        session = original()
        if not isinstance(session.get_adapter("http://"), _Adapter):
            session.mount("http://", _Adapter())
            session.mount("https://", _Adapter())
        return session

    return get_mm_http_session


def with_a_deadline(original: Callable[..., bytes]) -> Callable[..., bytes]:
    """For SGLang's ``download_remote_media``: it returns or raises within ``timeout`` seconds."""

    def download_remote_media(url: str, timeout: float) -> bytes:
        if timeout <= 0:
            return original(url, timeout)
        with _Deadline(timeout) as deadline:
            try:
                content = original(url, timeout)
                cause = None
            except Exception as error:
                cause = error
        # Cut off, a body without a declared length just ends.
        if deadline.is_over or isinstance(cause, requests.exceptions.Timeout):
            raise requests.exceptions.Timeout(
                f"the URL did not send its content within {timeout:g} seconds (REQUEST_TIMEOUT)"
            ) from cause
        if cause is not None:
            raise _with_short_words(cause) from cause
        return content

    return download_remote_media


def _with_short_words(error: Exception) -> Exception:
    said = shortened(error)
    if not isinstance(error, ValueError | requests.RequestException):
        return error
    kind = type(error) if isinstance(error, requests.RequestException) else ValueError
    return kind(said)
