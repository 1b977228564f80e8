"""A real SGLang server in a process group of its own, and clients of its HTTP interfaces."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import openai
import psutil
import requests
from prometheus_client.parser import text_string_to_metric_families

HOST = "127.0.0.1"
LOG_TAIL_LINES = 60
POLL_SECONDS = 0.5


class ServerError(RuntimeError):
    """The server did not start, or did not stop; the message ends with its last log lines."""


@dataclass(frozen=True)
class ChatAnswer:
    """One chat completion.

    Attributes
    ----------
    text : str
        The message's content.
    output_ids, prompt_ids : list of int
        Token ids as the server saw them; vision placeholders are expanded.
    finish_reason : str
        "stop" or "length".
    raw : dict
        The whole response.
    """

    text: str
    output_ids: list[int]
    prompt_ids: list[int]
    finish_reason: str
    raw: dict[str, Any]


def free_port() -> int:
    """A loopback TCP port that nothing listens on now.

    Below those that the kernel gives to outgoing connections: none takes it while a server starts.
    """
    while True:
        # Not `random`: hypothesis seeds that, so two workers would choose the same.
        port = 20_000 + secrets.randbelow(12_000)
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        return port


def session_processes(session: int) -> list[psutil.Process]:
    """Live processes of the session that the process with this id leads or led."""
    found = []
    for process in psutil.process_iter():
        try:
            in_session = os.getsid(process.pid) == session
            if in_session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            continue
    return found


class Server:
    """Context manager around ``python -m sglang.launch_server``.

    Parameters
    ----------
    model : Path
        Checkpoint directory.
    args : sequence of str
        More command line arguments.
    log : Path
        File that receives the server's output; kept.
    env : mapping of str to str or None, optional
        Environment variables on top of the current ones; None: unset.
    python : path, optional
        Interpreter that runs the server; default: this one.
    folder : path, optional
        Working directory, from which Python imports too; default: this one.
    start_seconds, stop_seconds : float
        Deadlines: until the first health check succeeds (the first start on a GPU compiles
        kernels), and from SIGTERM until the whole group is gone; after the latter it is killed.
    """

    def __init__(
        self,
        model: Path,
        *args: str,
        log: Path,
        env: Mapping[str, str | None] | None = None,
        python: Path | None = None,
        folder: Path | None = None,
        start_seconds: float = 900.0,
        stop_seconds: float = 20.0,
    ) -> None:
        self.model = Path(model)
        self.args = args
        self.log = Path(log)
        self.port = free_port()
        self.url = f"http://{HOST}:{self.port}"
        given = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **(env or {})}
        self._env = {name: value for name, value in given.items() if value is not None}
        self._python = str(python or sys.executable)
        self._folder = folder
        self._start_seconds = start_seconds
        self._stop_seconds = stop_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def command(self) -> list[str]:
        """The launch command."""
        fixed = ["--model-path", str(self.model), "--host", HOST, "--port", str(self.port)]
        return [self._python, "-m", "sglang.launch_server", *fixed, *self.args]

    @property
    def pid(self) -> int:
        """Process id of the launcher, which leads the group and the session."""
        if self._process is None:
            raise ServerError("the server was not started")
        return self._process.pid

    def start(self) -> None:
        """Launch and wait until the server generates.

        Raises
        ------
        ServerError
            If the process ends, or the deadline passes, before the server is healthy.
        """
        with self.log.open("wb") as output:
            self._process = subprocess.Popen(
                self.command,
                env=self._env,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait_until_healthy()
        except BaseException:
            self.stop()
            raise

    def _wait_until_healthy(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + self._start_seconds
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ServerError(
                    f"the server ended with code {self._process.returncode}\n{self.log_tail()}"
                )
            if self.is_healthy():
                return
            time.sleep(POLL_SECONDS)
        raise ServerError(f"not healthy after {self._start_seconds:g} s\n{self.log_tail()}")

    def is_healthy(self) -> bool:
        """Whether the server generates a token now."""
        try:
            return requests.get(f"{self.url}/health_generate", timeout=30).status_code == 200
        except requests.RequestException:
            return False

    def processes(self) -> list[psutil.Process]:
        """Live processes of the server: all in its session, whoever their parent is now."""
        return session_processes(self.pid)

    def stop(self) -> None:
        """Terminate the process group, wait, kill what is left; idempotent.

        Raises
        ------
        ServerError
            If a process of the server survives even that.
        """
        if self._process is None:
            return
        for sign, patience in ((signal.SIGTERM, self._stop_seconds), (signal.SIGKILL, 10.0)):
            members = self.processes()
            for process in members:
                try:
                    process.send_signal(sign)
                except psutil.NoSuchProcess:
                    continue
            self._reap(patience)
        survivors = self.processes()
        if survivors:
            names = ", ".join(f"{process.pid} {process.name()}" for process in survivors)
            raise ServerError(f"processes survived SIGKILL: {names}\n{self.log_tail()}")
        self._process = None

    def _reap(self, patience: float) -> None:
        assert self._process is not None
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            ended = self._process.poll() is not None
            if ended and not self.processes():
                return
            time.sleep(0.1)

    def log_text(self) -> str:
        """Everything the server printed so far."""
        return self.log.read_text(errors="replace")

    def log_tail(self, lines: int = LOG_TAIL_LINES) -> str:
        """The command and the last lines of the log."""
        tail = "\n".join(self.log_text().splitlines()[-lines:])
        return f"command: {' '.join(self.command)}\nlog {self.log}, its end:\n{tail}"

    def chat(
        self, messages: Sequence[dict[str, Any]], *, max_tokens: int = 16, **options: Any
    ) -> ChatAnswer:
        """Ask ``/v1/chat/completions``, greedily unless ``temperature`` is given.

        Parameters
        ----------
        messages : sequence of dict
            OpenAI chat messages.
        max_tokens : int
            At most so many output tokens.
        options
            Further fields of the request, SGLang's own (``ignore_eos``, ...) included.

        Raises
        ------
        openai.APIStatusError
            If the server refuses, `openai.BadRequestError` for status 400.
        """
        fields = {
            "temperature": 0.0,
            "return_output_ids_in_sglext": True,
            "return_input_ids_in_sglext": True,
            **options,
        }
        completion = self._openai.chat.completions.create(
            model=str(self.model),
            messages=cast(Any, messages),
            max_tokens=max_tokens,
            extra_body=fields,
        )
        raw = completion.model_dump()
        choice = raw["choices"][0]
        return ChatAnswer(
            text=choice["message"]["content"] or "",
            output_ids=raw["sglext"]["output_ids"][0],
            prompt_ids=raw["sglext"]["input_ids"],
            finish_reason=choice["finish_reason"],
            raw=raw,
        )

    def generate(
        self,
        prompt: str | Sequence[int] | Sequence[Sequence[int]],
        *,
        max_new_tokens: int = 16,
        request: Mapping[str, Any] | None = None,
        **sampling: Any,
    ) -> Any:
        """Ask ``/generate``, greedily unless ``temperature`` is given.

        Parameters
        ----------
        prompt : str, sequence of int or sequence of these
            Text, token ids, or a batch of token ids.
        max_new_tokens : int
            At most so many output tokens.
        request : mapping, optional
            Further fields of the request, such as ``return_logprob``.
        sampling
            Further sampling parameters, such as ``ignore_eos``.

        Returns
        -------
        dict or list of dict
            SGLang's answer: ``text``, ``output_ids``, ``meta_info``.
        """
        parameters = {"temperature": 0.0, "max_new_tokens": max_new_tokens, **sampling}
        body = {
            "text" if isinstance(prompt, str) else "input_ids": prompt,
            "sampling_params": parameters,
            **(request or {}),
        }
        return self._request("POST", "/generate", json=body).json()

    def server_info(self) -> dict[str, Any]:
        """The server's arguments and internal states."""
        info: dict[str, Any] = self._request("GET", "/server_info").json()
        return info

    def flush_cache(self) -> None:
        """Empty the radix cache, once the step behind the last answer is done too."""
        self._request("POST", "/flush_cache", params={"timeout": 60})

    def metrics(self) -> dict[str, float]:
        """Prometheus samples by name, summed over label sets; wants ``--enable-metrics``."""
        totals: dict[str, float] = defaultdict(float)
        text = self._request("GET", "/metrics/").text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                totals[sample.name] += sample.value
        return dict(totals)

    def _request(self, method: str, path: str, **options: Any) -> requests.Response:
        response = requests.request(method, self.url + path, timeout=600, **options)
        if not response.ok:
            raise requests.HTTPError(
                f"{response.status_code} from {path}: {response.text[:2000]}", response=response
            )
        return response
