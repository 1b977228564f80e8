"""What a user can set: `--specvlm-*` flags, `SPECVLM_*` environment variables.

SGLang's server arguments cannot be extended from outside. A flag is therefore written to its
environment variable as soon as the command line is parsed; every process of the server inherits it.
So is a keyword of `sglang.Engine`, `specvlm_*`. Flags and keywords win over variables.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

DEFAULT_NUM_STEPS = 3
"""``--speculative-num-steps`` where it is not given, of a tree or a chain of fixed length."""
DEFAULT_MOST_STEPS = 5
"""The same of a chain whose length follows what rounds cost."""
POSITIONS = ("contiguous", "original")
DRAFTS = ("model", "self")
_TRUE = ("1", "true", "yes", "on")
_FALSE = ("0", "false", "no", "off")
# Share of the target's tokens that is assumed to be text: questions, answers, requests without
# video. More than that at once and the newest requests go without a draft.
_TEXT_SHARE = 0.25


@dataclass(frozen=True)
class SpecVLMConfig:
    """Every setting of this plugin, validated.

    Attributes
    ----------
    retention
        Share of the video tokens that the draft KEEPS, in (0, 1]; 0.1 prunes 90 %.
    top_p
        Share of the attention mass that Stage I retains, in [0, 1].
    policy
        Pruning policy, one of `specvlm_sglang.pruning.registry.policy_names`.
    policy_file
        Python file with policies of the user's own.
    max_query_rows
        At most this many tokens after the last video token score the video, the newest ones.
    draft_video_tokens
        The draft reads at most so many video tokens of a prompt, whatever its length and
        ``retention``; None: no limit.
    draft_kv_tokens
        Slots of the draft's private KV cache; None sizes it from ``retention``.
    exact_vision
        Compute Qwen2.5-VL videos as its authors' and transformers' code does: the vision tower's
        full-attention blocks attend within each temporal grid, and M-RoPE gets the clip's true
        seconds per grid. SGLang 0.5.23 does neither; off by default, because installing a plugin
        must not change anybody's answers.
    positions
        How a draft with one-dimensional positions numbers its pruned prompt: ``contiguous`` from 0
        (the paper's authors), or ``original``, as in the full prompt. None is contiguous for
        these; families with M-RoPE always keep the original ids.
    audit
        Share of the finished greedy requests, in [0, 1], that an idle server decodes again without
        a draft and compares.
    draft
        What drafts: ``model``, that of ``--speculative-draft-model-path``, or ``self``, the target
        on the kept columns of its own KV cache. None: a model where one is named.
    self_layers
        A target that drafts for itself does so with so many of its layers, the first ones; None:
        with all.
    """

    retention: float = 0.1
    top_p: float = 0.2
    policy: str = "specvlm"
    policy_file: str | None = None
    max_query_rows: int = 256
    draft_video_tokens: int | None = None
    draft_kv_tokens: int | None = None
    exact_vision: bool = False
    positions: str | None = None
    audit: float = 0.0
    draft: str | None = None
    self_layers: int | None = None

    def __post_init__(self) -> None:
        from specvlm_sglang.policies import check_retention, check_tokens
        from specvlm_sglang.pruning.registry import check_policy, own_policies

        if self.policy_file is not None:
            own_policies(self.policy_file)
        if self.draft not in (None, *DRAFTS):
            raise ValueError(f"{_flag('draft')}={self.draft!r} must be one of {', '.join(DRAFTS)}")
        check_retention(self.retention, _flag("retention"))
        check_policy(self.policy, _flag("policy"))
        if not 0 <= self.top_p <= 1:
            raise ValueError(f"{_flag('top_p')}={self.top_p} must lie in [0, 1]")
        if self.max_query_rows < 1:
            raise ValueError(f"{_flag('max_query_rows')}={self.max_query_rows} must be at least 1")
        check_tokens(self.draft_video_tokens, _flag("draft_video_tokens"))
        if self.draft_kv_tokens is not None and self.draft_kv_tokens < 2:
            raise ValueError(
                f"{_flag('draft_kv_tokens')}={self.draft_kv_tokens} must be at least 2"
            )
        if self.positions not in (None, *POSITIONS):
            raise ValueError(
                f"{_flag('positions')}={self.positions!r} must be one of {', '.join(POSITIONS)}"
            )
        if self.self_layers is not None and self.self_layers < 1:
            raise ValueError(f"{_flag('self_layers')}={self.self_layers} must be at least 1")
        if not 0 <= self.audit <= 1:
            raise ValueError(f"{_flag('audit')}={self.audit} must lie in [0, 1]")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> SpecVLMConfig:
        """Read ``SPECVLM_*`` variables (of this process by default).

        Raises
        ------
        ValueError
            A value that cannot be used; the message names the setting, the value and the range.
        """
        environment = os.environ if environment is None else environment
        given: dict[str, Any] = {}
        for name, read in _READERS.items():
            text = environment.get(_variable(name), "").strip()
            if text:
                try:
                    given[name] = read(text)
                except ValueError as error:
                    raise ValueError(f"{_variable(name)}={text!r}: {error}") from None
        try:
            return cls(**given)
        except ValueError as error:
            # Flags arrive through the variables too, so either may be what the user wrote.
            also = "".join(f" (the flag, or {_variable(name)})" for name in _named(error, given))
            raise ValueError(f"{error}{also}") from None

    def default_draft_kv_tokens(
        self, target_tokens: int, *, max_running_requests: int, reserve: int
    ) -> int:
        """Slots of the draft's KV cache that serve what the target's pool can hold.

        The kept share of every target token, room for text (which is never pruned), and each
        running request's reserve.

        Parameters
        ----------
        target_tokens
            Slots of the target's KV cache.
        max_running_requests
            Requests that run at once.
        reserve
            Slots that a running request holds beyond its committed tokens.
        """
        tokens = int(target_tokens * self.draft_kv_share) + max_running_requests * reserve
        return min(target_tokens, tokens)

    def unfit_for_self(self) -> tuple[str, str] | None:
        """A setting, and why a target that drafts for itself does not work with it, or None."""
        from specvlm_sglang.pruning.registry import find_policy

        if self.draft_kv_tokens is not None:
            flag = f"{_flag('draft_kv_tokens')}={self.draft_kv_tokens}"
            return flag, "its draft has no KV cache of its own"
        if find_policy(self.policy).merges:
            flag = f"{_flag('policy')}={self.policy}"
            return flag, "nothing can be mixed into the target's own keys and values"
        return None

    @property
    def draft_kv_share(self) -> float:
        """Draft slots per target slot, the running requests' reserve not counted."""
        kept = 1.0 if self.policy == "none" else self.retention
        return min(1.0, kept + _TEXT_SHARE)

    def __str__(self) -> str:
        return ", ".join(f"{entry.name}={getattr(self, entry.name)}" for entry in fields(self))


def _variable(name: str) -> str:
    return f"SPECVLM_{name.upper()}"


def _flag(name: str) -> str:
    return f"--specvlm-{name.replace('_', '-')}"


def _keyword(name: str) -> str:
    return f"specvlm_{name}"


def _named(error: ValueError, names: Iterable[str]) -> list[str]:
    """Those of ``names`` that an error of `SpecVLMConfig` is about: one, or none."""
    return [name for name in names if str(error).startswith(f"{_flag(name)}=")]


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("not a number") from None


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("not an integer") from None


def _switch(text: str) -> bool:
    if text.lower() not in _TRUE + _FALSE:
        raise ValueError(f"must be one of {', '.join(_TRUE + _FALSE)}")
    return text.lower() in _TRUE


_READERS: dict[str, Callable[[str], Any]] = {
    "retention": _number,
    "top_p": _number,
    "policy": str,
    "policy_file": str,
    "max_query_rows": _integer,
    "draft_video_tokens": _integer,
    "draft_kv_tokens": _integer,
    "exact_vision": _switch,
    "positions": str,
    "audit": _number,
    "draft": str,
    "self_layers": _integer,
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the ``--specvlm-*`` flags to SGLang's argument parser.

    Their defaults stay None, so that a flag which was not given leaves its variable alone.
    """
    from specvlm_sglang.pruning.registry import shipped_policies

    group = parser.add_argument_group(
        "SpecVLM",
        "Speculative decoding for video LLMs (--speculative-algorithm SPECVLM). Each flag can also "
        "be set by its variable: --specvlm-retention by SPECVLM_RETENTION.",
    )
    group.add_argument(
        "--specvlm-draft",
        choices=DRAFTS,
        help="What drafts: the model of --speculative-draft-model-path, or the target itself on "
        "the kept part of its own KV cache (self). Default: self where no model is named.",
    )
    group.add_argument(
        "--specvlm-self-layers",
        type=int,
        metavar="K",
        help="A target that drafts for itself does so with its first K layers, the final norm and "
        "the output layer. Default: all layers.",
    )
    group.add_argument(
        "--specvlm-retention",
        type=float,
        help="Share of the video tokens that the draft keeps, in (0, 1]. Default: 0.1.",
    )
    group.add_argument(
        "--specvlm-top-p",
        type=float,
        help="Share of the video's attention mass that Stage I retains. Default: 0.2.",
    )
    group.add_argument(
        "--specvlm-policy",
        help=f"Pruning policy: {', '.join(shipped_policies())}, SCORER/SELECTOR, or one of your "
        "file; with +merge at the end dropped tokens are mixed into kept ones. Default: specvlm.",
    )
    group.add_argument(
        "--specvlm-policy-file",
        help="Python file with pruning policies of your own (specvlm_sglang.policies.policy).",
    )
    group.add_argument(
        "--specvlm-max-query-rows",
        type=int,
        help="At most this many tokens after the video score it. Default: 256.",
    )
    group.add_argument(
        "--specvlm-draft-video-tokens",
        type=int,
        help="The draft reads at most so many video tokens, whatever the video's length and the "
        "retention. Default: no limit.",
    )
    group.add_argument(
        "--specvlm-draft-kv-tokens",
        type=int,
        help="Slots of the draft's KV cache. Default: sized from the retention.",
    )
    group.add_argument(
        "--specvlm-exact-vision",
        action="store_true",
        default=None,
        help="Compute Qwen2.5-VL video features and M-RoPE times as transformers does (SGLang "
        "0.5.23 differs when a video has several temporal grids).",
    )
    group.add_argument(
        "--specvlm-positions",
        choices=POSITIONS,
        help="How a draft with one-dimensional positions (LLaVA-OneVision) numbers its pruned "
        "prompt. Default: contiguous. Models with M-RoPE always keep the original ids.",
    )
    group.add_argument(
        "--specvlm-audit",
        type=float,
        metavar="SHARE",
        help="Share of the greedy requests that an idle server decodes again without a draft and "
        "compares. Default: 0, none.",
    )


def export_flags(arguments: argparse.Namespace) -> None:
    """Write the flags that were given to the environment, for this and all child processes.

    Raises
    ------
    ValueError
        A value out of range; the message names the flag.
    """
    for name in _READERS:
        value = getattr(arguments, f"specvlm_{name}", None)
        if value is not None:
            os.environ[_variable(name)] = str(int(value) if isinstance(value, bool) else value)
    SpecVLMConfig.from_environment()


_replaced: dict[str, tuple[str, str | None]] = {}
"""Variables that the newest engine's keywords wrote: their text, and what stood there before."""


def export_keywords(keywords: Mapping[str, Any]) -> None:
    """Write an engine's keywords to the environment, which its processes will inherit.

    What the engine before this one was given is taken back first, so that keywords are settings of
    one engine (of a process that has one at a time); a variable that was changed since stays. None
    leaves a setting alone.

    Parameters
    ----------
    keywords
        ``specvlm_retention`` and the like, with numbers, text, paths or truth values.

    Raises
    ------
    ValueError
        An unknown keyword, or a value that cannot be used; the message names it and what may be
        given. None of these is written then.
    """
    unknown = [key for key in keywords if key not in map(_keyword, _READERS)]
    if unknown:
        known = ", ".join(map(_keyword, _READERS))
        raise ValueError(f"{unknown[0]} is no setting of SpecVLM: must be one of {known}")
    given = {name: keywords[_keyword(name)] for name in _READERS if _keyword(name) in keywords}
    texts = {name: _text(name, value) for name, value in given.items() if value is not None}
    _take_back()
    for name, text in texts.items():
        _replaced[_variable(name)] = (text, os.environ.get(_variable(name)))
        os.environ[_variable(name)] = text
    try:
        # After they are written: a policy may be in the file that another keyword names.
        SpecVLMConfig.from_environment()
    except ValueError as error:
        _take_back()
        for name in _named(error, texts):
            said = str(error).removesuffix(f" (the flag, or {_variable(name)})")
            raise ValueError(_keyword(name) + said.removeprefix(_flag(name))) from None
        raise


def _take_back() -> None:
    for variable, (written, before) in _replaced.items():
        if os.environ.get(variable) != written:
            continue
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before
    _replaced.clear()


def _text(name: str, value: object) -> str:
    """What stands in the variable for a keyword's value; raises `ValueError`, see above."""
    read = _READERS[name]
    try:
        if isinstance(value, bool) != (read is _switch):
            raise ValueError("must be True or False" if read is _switch else "not a number or name")
        text = str(int(value) if isinstance(value, bool) else value).strip()
        if not text:
            raise ValueError("is empty; leave it out for the default")
        read(text)
    except ValueError as error:
        raise ValueError(f"{_keyword(name)}={value!r}: {error}") from None
    return text
