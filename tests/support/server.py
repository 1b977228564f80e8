"""The tools' server with clients of its HTTP interfaces, and errors that end with its log."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import openai
import requests
from prometheus_client.parser import text_string_to_metric_families

from specvlm_sglang.tools import client, server
from specvlm_sglang.tools.errors import ToolError

LOG_TAIL_LINES = 60


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


class Server(server.Server):
    """A server that answers as soon as it is entered.

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
    python, folder : path, optional
        Interpreter and working directory; default: these.
    """

    def __init__(
        self,
        model: Path,
        *args: str,
        log: Path,
        env: Mapping[str, str | None] | None = None,
        python: Path | None = None,
        folder: Path | None = None,
    ) -> None:
        variables = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **(env or {})}
        super().__init__(model, args, log=log, environment=variables, python=python, folder=folder)
        self._openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def start(self) -> None:
        """Launch and wait until the server generates.

        Raises
        ------
        ToolError
            It ended, or did not generate in time; with the command and the end of the log.
        """
        super().start()
        try:
            server.wait_until_ready([self])
        except BaseException as error:
            self.stop()
            if isinstance(error, ToolError):
                tail = "\n".join(self.log_text().splitlines()[-LOG_TAIL_LINES:])
                raise ToolError(f"{error}\n{' '.join(self.command)}\n{tail}") from None
            raise

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

    def stream(self, prompt: str, **request: Any) -> Iterator[dict[str, Any]]:
        """Ask ``/generate`` for a stream; yields each chunk as it comes.

        ``request`` has the other fields, ``sampling_params`` among them.
        """
        body = {"text": prompt, "stream": True, **request}
        with self._request("POST", "/generate", json=body, stream=True) as response:
            for line in response.iter_lines():
                if line.startswith(b"data: {"):
                    yield json.loads(line[len(b"data: ") :])

    def preempt_all(self) -> None:
        """Take all running requests off; they are prefilled again and go on."""
        self._request("POST", "/pause_generation", json={"mode": "retract"})
        self._request("POST", "/continue_generation", json={})

    def open_session(self, *, streaming: bool = False) -> str:
        """Open a session; returns its id, which goes into ``session_params`` of requests."""
        options = {"capacity_of_str_len": 100_000, "streaming": streaming}
        session: str = self._request("POST", "/open_session", json=options).json()
        return session

    def close_session(self, session: str) -> None:
        """Close a session."""
        self._request("POST", "/close_session", json={"session_id": session})

    def server_info(self) -> dict[str, Any]:
        """The server's arguments and internal states."""
        return client.get_json(self.url, "/server_info")

    def flush_cache(self) -> None:
        """Empty the radix cache, once the step behind the last answer is done too."""
        client.flush_cache(self.url)

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
