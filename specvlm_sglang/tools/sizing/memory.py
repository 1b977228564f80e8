"""Bytes on one GPU of a tensor-parallel server: weights, KV caches, scores, the vision tower."""

from __future__ import annotations

from dataclasses import dataclass

from specvlm_sglang.config import SpecVLMConfig
from specvlm_sglang.host.memory_budget import equivalent_layers
from specvlm_sglang.pruning.budgets import video_token_budget
from specvlm_sglang.pruning.registry import find_policy
from specvlm_sglang.tools.sizing.dimensions import ModelDimensions, VisionDimensions

GIB = 1 << 30
MIB = 1 << 20
TEXT_TOKENS = 64
"""Of a question with its chat template, assumed."""
NEW_TOKENS = 512
"""Of the longest answer that is planned for."""
MAX_RUNNING_REQUESTS = 48
"""Of a SPECVLM server, unless it is told otherwise."""
KEYS_PER_SPLIT = 1024
FEATURE_CACHE = (256 * MIB, 1 / 128)


@dataclass(frozen=True)
class Model:
    """One of a pair.

    Attributes
    ----------
    name
        As the user gave it.
    dimensions
        Of it.
    weight_bytes
        Of the whole model.
    source
        Where both are from, for people.
    """

    name: str
    dimensions: ModelDimensions
    weight_bytes: float
    source: str


@dataclass(frozen=True)
class Sizes:
    """What `sizes` found; bytes are those of one GPU.

    Attributes
    ----------
    target_weights, draft_weights
        Weights, each 1 / tp of the model.
    target_kv, draft_kv
        KV cache of one token, all layers.
    kept
        Video tokens that the draft reads, of one request.
    target_request_kv, draft_request_kv
        KV caches of one request at the end of its answer.
    scoring
        Scores of one request while they are summed.
    vision_peak
        Activations while one video is encoded, by the model that needs more.
    features
        Cache of the draft's vision features.
    static_fraction
        Share of the memory that SGLang gives to weights and KV caches.
    room
        What is left of that for KV caches; negative where the weights do not fit.
    beside
        What is left of the rest beside vision, scores and features.
    tokens
        Tokens in the target's KV cache.
    batch
        Requests that fit into both caches at once.
    """

    target_weights: float
    draft_weights: float
    target_kv: float
    draft_kv: float
    kept: int
    target_request_kv: float
    draft_request_kv: float
    scoring: float
    vision_peak: float
    features: float
    static_fraction: float
    room: float
    beside: float
    tokens: int
    batch: int


def sizes(
    target: Model,
    draft: Model | None,
    config: SpecVLMConfig,
    *,
    tp: int,
    gpu_gib: float,
    video: int,
) -> Sizes:
    """Size a pair on ``tp`` GPUs of ``gpu_gib`` GiB for requests of ``video`` video tokens.

    Without a draft the target drafts for itself: the draft's bytes are 0, and its features are
    counted where the policy reads any.
    """
    memory, both = gpu_gib * GIB, [target] if draft is None else [target, draft]
    kv_layers = [kv_layer_bytes(model.dimensions, tp) for model in both]
    kv = [each * model.dimensions.layers for each, model in zip(kv_layers, both, strict=True)]
    kept = video_token_budget(video, config.retention, config.draft_video_tokens)
    own = TEXT_TOKENS + NEW_TOKENS
    fraction = static_fraction(gpu_gib, tp, target.dimensions.vision)
    weights = [model.weight_bytes / tp for model in both]
    room = memory * fraction - sum(weights)
    charged = kv[0]
    if draft is not None:
        charged += kv_layers[0] * equivalent_layers(
            draft.dimensions.layers, int(kv_layers[1]), int(kv_layers[0]), config.draft_kv_share
        )
    tokens = max(0, int(room // charged))
    batch = int(tokens // (video + own))
    if draft is not None:
        batch = min(batch, int(tokens * config.draft_kv_share // (kept + own)))
    encodes = draft is not None or find_policy(config.policy).needs_features
    features = max(FEATURE_CACHE[0], memory * FEATURE_CACHE[1]) if encodes else 0.0
    scoring = scoring_bytes(target.dimensions, tp, video, config.max_query_rows)
    peak = max(vision_peak(model.dimensions, tp, video) for model in both)
    return Sizes(
        target_weights=weights[0],
        draft_weights=sum(weights[1:]),
        target_kv=kv[0],
        draft_kv=sum(kv[1:]),
        kept=kept,
        target_request_kv=(video + own) * kv[0],
        draft_request_kv=(kept + own) * sum(kv[1:]),
        scoring=scoring,
        vision_peak=peak,
        features=features,
        static_fraction=fraction,
        room=room,
        beside=memory * (1 - fraction) - peak - scoring - features,
        tokens=tokens,
        batch=batch,
    )


def kv_layer_bytes(model: ModelDimensions, tp: int) -> float:
    """Keys and values of one token in one layer, on one GPU; at least one KV head is there."""
    heads = max(1, model.kv_heads // tp)
    return 2 * heads * model.head_dim * model.bytes_per_kv_element


def scoring_bytes(model: ModelDimensions, tp: int, video: int, max_rows: int) -> float:
    """Scores of one request while one layer is added: sums, normalisers and copied queries."""
    rows, length = min(TEXT_TOKENS, max_rows), video + TEXT_TOKENS
    heads, kv_heads = max(1, model.q_heads // tp), max(1, model.kv_heads // tp)
    splits = -(-length // KEYS_PER_SPLIT)
    floats = video + kv_heads * video + (splits + 1) * heads * rows
    indices = 8 * (length + video + rows)
    return 4 * floats + indices + rows * heads * model.head_dim * model.bytes_per_parameter


def vision_peak(model: ModelDimensions, tp: int, video: int) -> float:
    """Activations of one block over a whole video, its pixels (float32 and cast) beside it."""
    tower = model.vision
    patches = video * tower.patches_per_grid / tower.tokens_per_grid
    pixels = 3 * tower.temporal_patch * tower.patch**2
    # Residual and normalised input; then q, k, v, rotated q and k, and the output, or the MLP.
    attention = 6 * tower.hidden / tp
    mlp = (3 if tower.gated_mlp else 2) * tower.intermediate / tp
    activations = 2 * tower.hidden + max(attention, mlp)
    return patches * (activations * model.bytes_per_parameter + pixels * (4 + 2))


def static_fraction(gpu_gib: float, tp: int, tower: VisionDimensions) -> float:
    """SGLang 0.5.23's ``--mem-fraction-static`` where it is not given, on a CUDA device.

    Its rule of thumb (``arg_groups/memory_hook.py``), without prefill graphs, as under SPECVLM.
    """
    mib = gpu_gib * 1024
    rules = next((rule for below, *rule in _BY_MEMORY if gpu_gib < below), _LARGEST)
    chunk, graphs = rules[0], rules[2 if tp >= 4 else 1]
    reserved = 512 + 1.5 * chunk + tp / 8 * 1024 + 2 * graphs
    if gpu_gib > 60:
        reserved = max(reserved, 10 * 1024)
    layers, width = _as_sglang_reads(tower)
    complexity = layers * width**2 / (24 * 1024**2)
    factor = max(0.8, min(1.05, 1 - 0.1 * (complexity - 1)))
    return round((mib - reserved) / mib, 3) * 0.95 * factor


_BY_MEMORY = (
    (20, 2048, 8, 8),
    (35, 4096, 48, 160),
    (60, 4096, 32, 160),
    (160, 8192, 256, 512),
)
"""GiB below which it holds; chunked prefill, and the largest decode graph below and from 4 GPUs."""
_LARGEST = [16384, 512, 512]


def _as_sglang_reads(tower: VisionDimensions) -> tuple[int, int]:
    # It reads `num_hidden_layers` and `hidden_size`. The Qwen families call their depth otherwise
    # (24 is assumed then), and the second is Qwen2-VL's language model's.
    if tower.temporal_patch == 1:
        return tower.depth, tower.hidden
    qwen2_vl = not tower.gated_mlp and tower.projectors == 1
    return 24, tower.out_hidden if qwen2_vl else tower.hidden
