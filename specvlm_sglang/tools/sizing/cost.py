"""What a pruned draft costs and buys, from model dimensions and a roofline.

Every forward pass is reduced to the bytes it must move and the floating-point operations it must
do; its time is the larger of the two at the hardware's peak rates. Activations, norms, softmax and
host work are left out, so times are lower bounds and only their ratios deserve trust. A `Hardware`
may say what each kernel, and each launch outside a CUDA graph, adds.

Everywhere `accept_length` is the number of tokens emitted per verify round, bonus token INCLUDED.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from specvlm_sglang.pruning.budgets import video_token_budget
from specvlm_sglang.tools.sizing.dimensions import ModelDimensions

FLOAT32_BYTES = 4
LAYER_KERNELS = 11
"""Kernels of a dense decoder layer, as SGLang's Qwen2 has them on FlashAttention: two norms, four
matrix products, rotary embedding, the write into the KV cache, attention and its combination,
activation. Read, not counted on a device."""


def _at_least(name: str, value: float, lowest: float) -> None:
    if not (math.isfinite(value) and value >= lowest):
        raise ValueError(f"{name} is {value!r}; it must be finite and >= {lowest}")


@dataclass(frozen=True)
class Work:
    """Bytes moved between memory and chip, and floating-point operations (a multiply-add is 2).

    Attributes
    ----------
    kernels
        That do it, one after the other, where that is known.
    """

    bytes: float
    flops: float
    kernels: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.bytes + other.bytes, self.flops + other.flops, self.kernels + other.kernels
        )


@dataclass(frozen=True)
class Hardware:
    """Peak rates of the device, or the sum over the devices that share a model.

    Attributes
    ----------
    bytes_per_second
        Memory bandwidth.
    flops_per_second
        Dense matrix rate in the dtype that is served.
    kernel_seconds
        What a kernel takes besides its bytes and operations: until it runs, and until it is full.
    launch_seconds
        What the host takes for a launch that no CUDA graph makes.
    """

    bytes_per_second: float
    flops_per_second: float
    name: str = "device"
    kernel_seconds: float = 0.0
    launch_seconds: float = 0.0

    def __post_init__(self) -> None:
        _at_least("Hardware.kernel_seconds", self.kernel_seconds, 0)
        _at_least("Hardware.launch_seconds", self.launch_seconds, 0)
        for field in ("bytes_per_second", "flops_per_second"):
            value = getattr(self, field)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"Hardware.{field} is {value!r}; it must be finite and > 0")


HARDWARE = {
    hardware.name: hardware
    for hardware in (
        Hardware(2.039e12, 312e12, "A100"),
        Hardware(3.35e12, 989e12, "H100"),
        Hardware(4.8e12, 989e12, "H200"),
        Hardware(0.864e12, 362e12, "L40S"),
    )
}
"""NVIDIA's data sheets: A100 80 GB SXM, H100 SXM, H200 SXM, L40S; dense bfloat16."""


def roofline_seconds(work: Work, hardware: Hardware) -> float:
    """Seconds for `work` when memory and arithmetic overlap perfectly, and kernels not at all."""
    busy = max(work.bytes / hardware.bytes_per_second, work.flops / hardware.flops_per_second)
    return busy + work.kernels * hardware.kernel_seconds


def decoder_forward(
    model: ModelDimensions, new_tokens: int, context: int, logits: int, batch: int = 1
) -> Work:
    """One pass of the decoder over `new_tokens` per request, after `context` cached ones.

    Weights are read once for the batch, of experts those that it chooses. Each request reads the
    keys and values of its context and of its new tokens once, and writes the new ones; attention is
    causal among the new tokens.

    Parameters
    ----------
    new_tokens, context, logits
        Per request: tokens computed, tokens already cached, rows that go through the output head.
    """
    _at_least("new_tokens", new_tokens, 1)
    _at_least("context", context, 0)
    _at_least("logits", logits, 1)
    _at_least("batch", batch, 1)
    layers = model.layer_parameters_read(batch * new_tokens)
    weights = (layers + model.head_parameters) * model.bytes_per_parameter
    embedded = batch * new_tokens * model.hidden * model.bytes_per_parameter
    kv = batch * (context + 2 * new_tokens) * model.kv_bytes_per_token
    dense = 2 * batch * (new_tokens * model.layer_parameters + logits * model.head_parameters)
    visible_keys = new_tokens * context + new_tokens * (new_tokens + 1) // 2
    attention = 4 * batch * model.layers * model.q_heads * model.head_dim * visible_keys
    return Work(weights + embedded + kv, dense + attention, LAYER_KERNELS * model.layers)


def prefill(model: ModelDimensions, prompt_tokens: int, batch: int = 1) -> Work:
    """Language-model prefill of a whole prompt; only its last row needs logits."""
    return decoder_forward(model, prompt_tokens, 0, 1, batch)


def draft_step(model: ModelDimensions, context: int, rows: int = 1, batch: int = 1) -> Work:
    """One draft step: `rows` tree nodes of one depth (1 for a chain) extend the draft."""
    return decoder_forward(model, rows, context, rows, batch)


def verify(model: ModelDimensions, draft_tokens: int, context: int, batch: int = 1) -> Work:
    """The target checks `draft_tokens` tokens, the root included; 1 is a plain decode step."""
    return decoder_forward(model, draft_tokens, context, draft_tokens, batch)


def vision_encode(model: ModelDimensions, video_tokens: int, batch: int = 1) -> Work:
    """The vision tower turns a whole clip into `video_tokens` features.

    Patches attend within their own grid, or within windows of it.
    """
    _at_least("video_tokens", video_tokens, 0)
    _at_least("batch", batch, 1)
    if video_tokens == 0:
        return Work(0.0, 0.0)
    tower = model.vision
    patches = batch * video_tokens * tower.patches_per_grid / tower.tokens_per_grid
    projected = tower.projector_parameters / tower.spatial_merge**2
    per_patch = tower.patch_embedding_parameters + tower.block_parameters + projected
    window = min(tower.window_patches, tower.patches_per_grid)
    windowed_blocks = tower.depth - tower.full_attention_blocks
    keys = tower.full_attention_blocks * tower.patches_per_grid + windowed_blocks * window
    features = batch * video_tokens * tower.out_hidden * tower.projectors
    return Work(
        bytes=(tower.parameters + features) * model.bytes_per_parameter,
        flops=2 * patches * per_patch + 4 * patches * tower.hidden * keys,
    )


def scoring(
    model: ModelDimensions, rows: int, positions: int, batch: int = 1, passes: int = 2
) -> Work:
    """Language-to-video scores: `rows` queries against `positions` keys, every layer and head.

    Averaging over rows needs each row's softmax normaliser first, hence two passes over the keys;
    one is enough where the target's attention already gave the log-sum-exp. No values are read.
    """
    _at_least("rows", rows, 1)
    _at_least("positions", positions, 1)
    _at_least("batch", batch, 1)
    _at_least("passes", passes, 1)
    head_elements = model.layers * model.head_dim
    keys = positions * model.kv_heads * head_elements * model.bytes_per_kv_element
    queries = rows * model.q_heads * head_elements * model.bytes_per_parameter
    return Work(
        bytes=batch * (passes * (keys + queries) + positions * FLOAT32_BYTES),
        flops=2 * batch * passes * rows * positions * model.q_heads * head_elements,
    )


def decode_speedup(
    accept_length: float,
    draft_steps: int,
    target_over_draft: float,
    verify_over_target: float = 1.0,
    extras: float = 0.0,
) -> float:
    """Decode speedup over plain decoding: accept_length / (T_verify/T_target + s/c + extras).

    Parameters
    ----------
    accept_length
        Tokens per verify round, bonus included.
    draft_steps
        Sequential draft forwards s in a round.
    target_over_draft
        c: seconds of a target decode step over seconds of a draft step.
    verify_over_target
        Seconds of a verify pass over seconds of a target decode step.
    extras
        All else in a round (tree building, sampling, host), in target decode steps.
    """
    _at_least("draft_steps", draft_steps, 0)
    _at_least("accept_length", accept_length, 1)
    if accept_length > draft_steps + 1:
        raise ValueError(
            f"accept_length is {accept_length!r}; it must be at most draft_steps + 1 "
            f"({draft_steps + 1})"
        )
    for name, value in (
        ("target_over_draft", target_over_draft),
        ("verify_over_target", verify_over_target),
    ):
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value!r}; it must be finite and > 0")
    _at_least("extras", extras, 0)
    return accept_length / (verify_over_target + draft_steps / target_over_draft + extras)


@dataclass(frozen=True)
class ServingPath:
    """One way to serve the batch. Speedups are over the plain path.

    Attributes
    ----------
    time_to_first_token, draft_start_seconds, seconds_per_token, total_seconds
        Seconds: until the first token, from there until the draft is ready, for each token after
        that, and for the whole answer.
    draft_kv_bytes
        Draft KV slots in use at the end of the answer, over the batch.
    """

    time_to_first_token: float
    draft_start_seconds: float
    seconds_per_token: float
    total_seconds: float
    decode_speedup: float
    end_to_end_speedup: float
    draft_kv_bytes: float


@dataclass(frozen=True)
class PruningReport:
    """Answer of `what_would_pruning_buy`.

    Attributes
    ----------
    kept_video_tokens
        Video tokens that the draft reads, per request.
    plain, unpruned, pruned
        No speculation; a draft on the whole prompt; a draft on the pruned prompt.
    draft_kv_bytes_saved, draft_prefill_seconds_saved, draft_step_seconds_saved
        What pruning takes off the unpruned draft, over the batch.
    scoring_seconds
        What pruning adds to the time to first token.
    video_share_of_draft_step
        Share of an unpruned draft step's bytes that is video keys and values.
    """

    kept_video_tokens: int
    plain: ServingPath
    unpruned: ServingPath
    pruned: ServingPath
    draft_kv_bytes_saved: float
    draft_prefill_seconds_saved: float
    draft_step_seconds_saved: float
    scoring_seconds: float
    video_share_of_draft_step: float


def what_would_pruning_buy(
    target: ModelDimensions,
    draft: ModelDimensions,
    hardware: Hardware,
    video_tokens: int,
    text_tokens: int,
    retention: float,
    accept_length: float,
    draft_steps: int,
    draft_tokens: int,
    batch: int = 1,
    new_tokens: int = 256,
    *,
    unpruned_accept_length: float | None = None,
    query_rows: int = 256,
    extras: float = 0.0,
    launches: int = 0,
) -> PruningReport:
    """Compare plain decoding, an unpruned draft and a pruned draft on one machine.

    Assumptions: target and draft share `hardware` and run one after the other; both encode the
    whole clip; the first token leaves before the draft begins; decode steps are taken at the mean
    context, half of `new_tokens` after the prompt; the draft_tokens - 1 nodes of a tree are spread
    evenly over its steps.

    Parameters
    ----------
    video_tokens, text_tokens
        Prompt tokens per request.
    retention
        Share of video tokens KEPT, in (0, 1].
    accept_length
        Tokens per verify round of the pruned draft, bonus included.
    draft_steps, draft_tokens
        Sequential draft forwards, and tokens verified (root included) in a round.
    unpruned_accept_length
        The unpruned draft's accept length; None takes the pruned draft's.
    query_rows
        Score at most this many text rows after the video.
    extras
        Unmodelled work of a round, in target decode steps.
    launches
        Of a round beside the models' passes, more than plain decoding makes.

    Raises
    ------
    ValueError
        A count is below its minimum, retention is outside (0, 1], an accept length is outside
        [1, draft_steps + 1], or draft_tokens is not above draft_steps.
    """
    _at_least("video_tokens", video_tokens, 0)
    _at_least("text_tokens", text_tokens, 1)
    _at_least("draft_steps", draft_steps, 1)
    _at_least("draft_tokens", draft_tokens, draft_steps + 1)
    _at_least("batch", batch, 1)
    _at_least("new_tokens", new_tokens, 1)
    _at_least("query_rows", query_rows, 1)
    _at_least("launches", launches, 0)
    kept = video_token_budget(video_tokens, retention)
    prompt = video_tokens + text_tokens
    middle = new_tokens // 2
    rows = math.ceil((draft_tokens - 1) / draft_steps)

    def seconds(work: Work) -> float:
        return roofline_seconds(work, hardware)

    plain_first = seconds(vision_encode(target, video_tokens, batch))
    plain_first += seconds(prefill(target, prompt, batch))
    target_step = seconds(verify(target, 1, prompt + middle, batch))
    verify_step = seconds(verify(target, draft_tokens, prompt + middle, batch))
    around = extras + launches * hardware.launch_seconds / target_step
    draft_vision = seconds(vision_encode(draft, video_tokens, batch))
    score = 0.0
    if video_tokens:
        score = seconds(scoring(target, min(query_rows, text_tokens), prompt, batch))

    def path(first: float, start: float, speedup: float, kv_tokens: int) -> ServingPath:
        per_token = target_step / speedup
        total = first + start + (new_tokens - 1) * per_token
        plain_total = plain_first + (new_tokens - 1) * target_step
        return ServingPath(
            time_to_first_token=first,
            draft_start_seconds=start,
            seconds_per_token=per_token,
            total_seconds=total,
            decode_speedup=speedup,
            end_to_end_speedup=plain_total / total,
            draft_kv_bytes=batch * kv_tokens * draft.kv_bytes_per_token,
        )

    def drafted(
        scored: float, prefilled: float, prompt_tokens: int, step: float, accepted: float
    ) -> ServingPath:
        speedup = decode_speedup(
            accepted, draft_steps, target_step / step, verify_step / target_step, around
        )
        first, start = plain_first + scored, draft_vision + prefilled
        return path(first, start, speedup, prompt_tokens + new_tokens)

    full_step = draft_step(draft, prompt + middle, rows, batch)
    full_step_seconds = seconds(full_step)
    pruned_step_seconds = seconds(draft_step(draft, kept + text_tokens + middle, rows, batch))
    full_prefill = seconds(prefill(draft, prompt, batch))
    pruned_prefill = seconds(prefill(draft, kept + text_tokens, batch))
    full_accepted = accept_length if unpruned_accept_length is None else unpruned_accept_length
    unpruned = drafted(0.0, full_prefill, prompt, full_step_seconds, full_accepted)
    pruned = drafted(score, pruned_prefill, kept + text_tokens, pruned_step_seconds, accept_length)
    return PruningReport(
        kept_video_tokens=kept,
        plain=path(plain_first, 0.0, 1.0, 0),
        unpruned=unpruned,
        pruned=pruned,
        draft_kv_bytes_saved=unpruned.draft_kv_bytes - pruned.draft_kv_bytes,
        draft_prefill_seconds_saved=full_prefill - pruned_prefill,
        draft_step_seconds_saved=full_step_seconds - pruned_step_seconds,
        scoring_seconds=score,
        video_share_of_draft_step=batch * video_tokens * draft.kv_bytes_per_token / full_step.bytes,
    )


@dataclass(frozen=True)
class SelfDraftReport:
    """Answer of `what_would_self_drafting_buy`.

    Attributes
    ----------
    kv_share
        Share of a plain decode step's bytes that is keys and values.
    draft_over_plain
        Seconds of a draft step over seconds of a plain decode step.
    break_even_accept_length
        Seconds of a round over seconds of a plain decode step: the accept length, bonus included,
        from which on a round pays.
    highest_speedup
        Where every draft is accepted.
    """

    kv_share: float
    draft_over_plain: float
    break_even_accept_length: float
    highest_speedup: float

    def speedup(self, accept_length: float) -> float:
        """Over plain decoding, at so many tokens of a verify round, bonus included."""
        return accept_length / self.break_even_accept_length


def what_would_self_drafting_buy(
    target: ModelDimensions,
    hardware: Hardware,
    video_tokens: int,
    text_tokens: int,
    retention: float,
    draft_steps: int,
    batch: int = 1,
    new_tokens: int = 256,
    *,
    extras: float = 0.0,
    layers: int | None = None,
) -> SelfDraftReport:
    """Compare plain decoding with a target that drafts chains for itself on a pruned prompt.

    A draft step is a decode step of the target that reads the kept columns of its KV cache, so
    only their keys and values are saved. A round has `draft_steps` of them and one verification.

    Parameters
    ----------
    video_tokens, text_tokens
        Prompt tokens per request.
    retention
        Share of video tokens KEPT, in (0, 1].
    draft_steps
        Drafted tokens of a round.
    new_tokens
        Steps are taken at the mean context, half of these after the prompt.
    extras
        Unmodelled work of a round, in plain decode steps.
    layers
        How many of the target's layers draft, before its output head; None: all.

    Raises
    ------
    ValueError
        A count is below its minimum, retention is outside (0, 1], or there are fewer layers.
    """
    _at_least("video_tokens", video_tokens, 0)
    _at_least("text_tokens", text_tokens, 1)
    _at_least("draft_steps", draft_steps, 1)
    _at_least("new_tokens", new_tokens, 1)
    _at_least("extras", extras, 0)
    kept = video_token_budget(video_tokens, retention)
    context = video_tokens + text_tokens + new_tokens // 2
    plain = verify(target, 1, context, batch)
    plain_seconds = roofline_seconds(plain, hardware)
    if layers is not None and not 1 <= layers <= target.layers:
        raise ValueError(f"layers is {layers!r}; it must be 1 to {target.layers}")
    drafting = target if layers is None else replace(target, layers=layers)
    draft = roofline_seconds(
        draft_step(drafting, context - video_tokens + kept, batch=batch), hardware
    )
    verified = roofline_seconds(verify(target, draft_steps + 1, context, batch), hardware)
    round_over_plain = (draft_steps * draft + verified) / plain_seconds + extras
    return SelfDraftReport(
        kv_share=batch * (context + 2) * target.kv_bytes_per_token / plain.bytes,
        draft_over_plain=draft / plain_seconds,
        break_even_accept_length=round_over_plain,
        highest_speedup=(draft_steps + 1) / round_over_plain,
    )
