"""SPECVLM as SGLang sees it: a registered speculative algorithm, its arguments and refusals."""

from __future__ import annotations

import logging
import os
from typing import Any

from sglang.srt.model_executor.cuda_graph_config import Backend, Phase, with_phase
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
from sglang.srt.speculative.spec_registry import CustomSpecAlgo

from specvlm_sglang.config import DEFAULT_MOST_STEPS, DEFAULT_NUM_STEPS, SpecVLMConfig
from specvlm_sglang.host import adaptive, attention_default, contract, memory_budget
from specvlm_sglang.host.request_validation import NO_HIDDEN_STATES
from specvlm_sglang.models.pair import check_pair, check_self
from specvlm_sglang.models.stored import check_weights

logger = logging.getLogger(__name__)

NAME = "SPECVLM"
DEFAULT_MAX_RUNNING_REQUESTS = 48
# Backends whose draft decode reads per-branch pages (topk > 1 with page_size > 1).
_PAGED_TREE_BACKENDS = ("flashinfer", "fa3", "triton")
# Those that verify a chain and draft several steps on a GPU; with a tree, all but the last.
_GPU_BACKENDS = ("flashinfer", "fa3", "fa4", "triton", "trtllm_mha")
_CHAIN_ONLY_BACKENDS = ("trtllm_mha",)
# Those that cannot read pages of one slot, or were not tried with a pool of larger ones.
_PAGE_BOUND_BACKENDS = ("trtllm_mha", "fa4")
_BACKEND_FIELDS = (
    "attention_backend",
    "prefill_attention_backend",
    "decode_attention_backend",
    "speculative_draft_attention_backend",
)

# flag -> (attribute, the value that means "off", why it is refused)
_UNSUPPORTED: tuple[tuple[str, str, object, str], ...] = (
    ("--pipeline-parallel-size", "pp_size", 1, "the draft reads the scores of every layer"),
    # SGLang has turned --enable-dp-attention into this width by the time we are asked.
    (
        "--enable-dp-attention/--attn-dp-size",
        "attn_dp_size",
        1,
        "the draft's KV cache is private",
    ),
    (
        "--disaggregation-mode",
        "disaggregation_mode",
        "null",
        "the draft's pruned KV cache is not transferred",
    ),
    (
        "--enable-hierarchical-cache",
        "enable_hierarchical_cache",
        False,
        "the draft's KV cache has slots of its own",
    ),
    (
        "--enable-unified-memory",
        "enable_unified_memory",
        False,
        "the draft's KV cache has slots of its own",
    ),
    ("--enable-hisparse", "enable_hisparse", False, "the draft's KV cache has slots of its own"),
    (
        "--speculative-use-rejection-sampling",
        "speculative_use_rejection_sampling",
        False,
        "SPECVLM verifies against the target's distribution alone",
    ),
    (
        "--speculative-token-map",
        "speculative_token_map",
        None,
        "the draft is a complete model with its own output layer",
    ),
    (
        "--speculative-draft-window-size",
        "speculative_draft_window_size",
        None,
        "SPECVLM decides itself what the draft reads",
    ),
    (
        "--speculative-adaptive-config",
        "speculative_adaptive_config",
        None,
        "SPECVLM chooses by what rounds cost; --speculative-num-steps is the most that it drafts",
    ),
    ("--enable-multi-layer-eagle", "enable_multi_layer_eagle", False, "it belongs to EAGLE"),
    ("--enable-two-batch-overlap", "enable_two_batch_overlap", False, "scores are taken per batch"),
    ("--enable-pdmux", "enable_pdmux", False, "its prefill does not pass through the draft"),
    ("--attn-cp-size", "attn_cp_size", 1, "scores need the rows of a prompt on one rank"),
    ("--dcp-size", "dcp_size", 1, "scores need the keys of a prompt on one rank"),
    (
        "--speculative-accept-threshold-single",
        "speculative_accept_threshold_single",
        1.0,
        "answers would not be the target's",
    ),
    (
        "--speculative-accept-threshold-acc",
        "speculative_accept_threshold_acc",
        1.0,
        "answers would not be the target's",
    ),
    (
        "--enable-return-hidden-states/--return-hidden-states-mode",
        "return_hidden_states_mode",
        None,
        NO_HIDDEN_STATES,
    ),
    (
        "--tokenizer-worker-num",
        "tokenizer_worker_num",
        1,
        "SGLang loads no plugin in its tokenizer workers",
    ),
    ("--enable-lora", "enable_lora", False, "it was not tried with SPECVLM"),
    ("--lora-paths", "lora_paths", None, "it was not tried with SPECVLM"),
)
_CHECKED_FORMATS = ("auto", "safetensors")
_SCORED_KV_TYPES = ("auto", "bf16", "bfloat16", "fp8_e4m3", "fp8_e5m2")
"""Keys with scales by block would be scored wrongly, or unpacked as a whole for each layer."""
_UNSUPPORTED_ENVIRONMENT = (
    "SGLANG_USE_HND_KVCACHE",
    "SGLANG_ENABLE_POST_CAPTURE_KV_SIZING",
    "SGLANG_ENABLE_OVERLAP_PLAN_STREAM",
    # It answers in the place of the tokenizer manager, which knows our options and reports.
    "SGLANG_RUST_SERVER",
)


class SpecVLMAlgorithm(CustomSpecAlgo):
    """SPECVLM in SGLang's vocabulary: a standalone draft model without hidden states.

    `CustomSpecAlgo` lacks four methods that the scheduler calls on every algorithm; they are here.
    ``is_standalone`` makes SGLang build its verify graphs and its batch relay for a complete draft
    model; ``is_eagle`` stays False, since it would change the radix cache's keys.
    """

    def is_standalone(self) -> bool:
        return True

    def supports_grammar_overlap(self) -> bool:
        return True

    def has_draft_kv(self) -> bool:
        return True

    def need_topk(self) -> bool:
        return True

    def carries_draft_hidden_states(self) -> bool:
        return False

    def get_platform_worker_cls(self) -> None:
        return None

    def create_future_map(
        self,
        device: Any,
        req_to_token_pool: Any,
        needs_cpu_seq_lens: bool = True,
        needs_confidence_relay: bool = False,
    ) -> Any:
        from sglang.srt.managers.overlap_utils import FutureMap

        return FutureMap(
            device, self, req_to_token_pool, needs_cpu_seq_lens, needs_confidence_relay
        )

    def handle_server_args(self, server_args: Any) -> None:
        """Resolve and check SGLang's arguments; called by SGLang with a recorder of our writes.

        Raises
        ------
        ValueError
            A combination that SPECVLM does not serve; the message names the flag.
        """
        from specvlm_sglang.frontend import PREFIX, decode_frames
        from specvlm_sglang.host import frontend_video, request_validation, response_report
        from specvlm_sglang.report.entries import KEY, ResponseReport

        config = SpecVLMConfig.from_environment()
        check_draft(server_args.speculative_draft_model_path, config.draft, config.self_layers)
        refuse_unsupported(server_args)
        request_validation.install(check_options)
        response_report.install(KEY, ResponseReport)
        frontend_video.install(PREFIX, decode_frames)
        # Before the tree: such a backend brings its own page size, which the user did not set.
        check_attention_backends(server_args)
        resolve_pace(server_args)
        resolve_tree(server_args)
        resolve_prefill_graphs(server_args)
        if server_args.speculative_draft_model_path is None:
            refuse_drafting_for_itself(server_args, config)
            check_self(
                server_args.model_path,
                trust_remote_code=server_args.trust_remote_code,
                positions=config.positions,
                layers=config.self_layers,
            )
            logger.info("%s: no draft model is named, so the target drafts for itself", NAME)
        else:
            check_pair(
                server_args.model_path,
                server_args.speculative_draft_model_path,
                tokenizer=server_args.tokenizer_path,
                trust_remote_code=server_args.trust_remote_code,
                positions=config.positions,
                tp_size=server_args.tp_size,
                served_length=server_args.context_length,
            )
        check_stored(server_args)
        if server_args.max_running_requests is None:
            server_args.max_running_requests = DEFAULT_MAX_RUNNING_REQUESTS
        server_args.enable_mixed_chunk = False
        if attention_default.is_float32_on_gpu(server_args):
            server_args.mm_attention_backend = server_args.mm_attention_backend or "triton_attn"
        if server_args.device == "cpu":
            server_args.disable_overlap_schedule = True


def check_stored(server_args: Any) -> None:
    """Raise ``ValueError`` for a checkpoint whose files are not what its configuration says."""
    target_format = server_args.load_format
    draft_format = server_args.speculative_draft_load_format or target_format
    for path, load_format in (
        (server_args.model_path, target_format),
        (server_args.speculative_draft_model_path, draft_format),
    ):
        if path is not None and load_format in _CHECKED_FORMATS:
            check_weights(path, trust_remote_code=server_args.trust_remote_code)


def check_options(custom_params: Any) -> None:
    """Raise ``ValueError`` for a request's ``custom_params`` that SPECVLM cannot follow."""
    from specvlm_sglang.request import parse_options

    parse_options(custom_params, SpecVLMConfig.from_environment())


def check_draft(path: str | None, draft: str | None, self_layers: int | None = None) -> None:
    """Raise ``ValueError`` where a draft model and our flags of what drafts disagree."""
    if draft == "model" and path is None:
        raise ValueError(
            f"--specvlm-draft=model needs a draft model: --speculative-draft-model-path "
            f"({NAME} without one lets the target draft for itself)"
        )
    if draft == "self" and path is not None:
        raise ValueError(
            f"--speculative-draft-model-path={path} does not work with --specvlm-draft self: the "
            "target drafts for itself; leave one of them out"
        )
    if self_layers is not None and path is not None:
        raise ValueError(
            f"--specvlm-self-layers={self_layers} does not work with "
            f"--speculative-draft-model-path={path}: they are layers of a target that drafts for "
            "itself; leave one of them out"
        )


def refuse_drafting_for_itself(server_args: Any, config: SpecVLMConfig) -> None:
    """Raise ``ValueError`` naming what a target that drafts for itself does not work with."""
    given = f"does not work with {NAME} without a draft model (--specvlm-draft self)"
    page, topk = server_args.page_size or 1, server_args.speculative_eagle_topk
    if page > 1 and topk > 1:
        raise ValueError(
            f"--page-size={page} with --speculative-eagle-topk={topk} {given}: branches begin on "
            "pages of their own, and kept tokens lie in no page; use --page-size 1 or a chain"
        )
    whole = _PAGE_BOUND_BACKENDS if server_args.device == "cuda" else ()
    for backend, flag in attention_backends(server_args).items():
        if backend in whole:
            raise ValueError(
                f"{flag}={backend} {given}: it reads whole pages, and kept tokens lie in none; use "
                f"one of {', '.join(name for name in _GPU_BACKENDS if name not in whole)}"
            )
    if config.self_layers is not None and server_args.tp_size > 1:
        raise ValueError(
            f"--specvlm-self-layers={config.self_layers} does not work with "
            f"--tp-size={server_args.tp_size}: a layer may leave its ranks' sum to the next one"
        )
    setting = config.unfit_for_self()
    if setting is not None:
        flag_and_value, why = setting
        raise ValueError(f"{flag_and_value} {given}: {why}")


def refuse_unsupported(server_args: Any) -> None:
    """Raise ``ValueError`` naming the first flag or variable that SPECVLM does not work with."""
    for flag, attribute, off, why in _UNSUPPORTED:
        value = getattr(server_args, attribute)
        # Not its truth: a threshold of 0 would accept every drafted token.
        if value is not None and value is not False and value not in (off, [], ""):
            raise ValueError(f"{flag}={value} does not work with {NAME}: {why}")
    if server_args.kv_cache_dtype not in _SCORED_KV_TYPES:
        raise ValueError(
            f"--kv-cache-dtype={server_args.kv_cache_dtype} does not work with {NAME}: keys are "
            f"scored as {', '.join(_SCORED_KV_TYPES)} only"
        )
    for variable in _UNSUPPORTED_ENVIRONMENT:
        if os.environ.get(variable, "0").lower() in ("1", "true", "yes"):
            raise ValueError(f"{variable}=1 does not work with {NAME}: unset it")
    from sglang.srt.platforms import current_platform

    if current_platform.is_out_of_tree() and not current_platform.supports_speculative_algorithm(
        NAME
    ):
        raise ValueError(f"{NAME} is not supported by {type(current_platform).__name__}")


def why_not_adaptive(server_args: Any) -> str | None:
    """Why ``--speculative-adaptive`` has no effect with these arguments, or None."""
    if (server_args.speculative_eagle_topk or 1) > 1:
        return (
            f"--speculative-eagle-topk={server_args.speculative_eagle_topk} asks for a tree, and "
            "only chains change their length"
        )
    return None


def resolve_pace(server_args: Any) -> None:
    """Let a chain whose length nobody gave follow what rounds cost, up to `DEFAULT_MOST_STEPS`.

    On a GPU only with ``--speculative-adaptive``: it has not run on one, and each number of steps
    captures CUDA graphs of its own.
    """
    shape = (server_args.speculative_num_steps, server_args.speculative_num_draft_tokens)
    if shape != (None, None) or (server_args.speculative_eagle_topk or 1) > 1:
        return
    if server_args.device == "cpu":
        server_args.speculative_adaptive = True
    if server_args.speculative_adaptive:
        server_args.speculative_num_steps = DEFAULT_MOST_STEPS
        logger.info(
            "%s: 0 to %d draft tokens a round, as rounds turn out to cost; "
            "--speculative-num-steps fixes their number",
            NAME,
            DEFAULT_MOST_STEPS,
        )


def resolve_tree(server_args: Any) -> None:
    """Fill in ``--speculative-num-steps/-eagle-topk/-num-draft-tokens`` and check that they agree.

    Raises
    ------
    ValueError
        A value out of range, or draft tokens that the tree cannot have.
    """
    steps = server_args.speculative_num_steps
    topk = server_args.speculative_eagle_topk
    tokens = server_args.speculative_num_draft_tokens
    if tokens is not None and tokens < 2:
        raise ValueError(f"--speculative-num-draft-tokens={tokens} must be at least 2")
    if steps is None and tokens is not None and topk in (None, 1):
        steps = tokens - 1
    steps = DEFAULT_NUM_STEPS if steps is None else steps
    topk = 1 if topk is None else topk
    if steps < 1:
        raise ValueError(f"--speculative-num-steps={steps} must be at least 1")
    if topk < 1:
        raise ValueError(f"--speculative-eagle-topk={topk} must be at least 1")
    if topk == 1:
        if tokens not in (None, steps + 1):
            raise ValueError(
                f"--speculative-num-draft-tokens={tokens} must be "
                f"--speculative-num-steps + 1 = {steps + 1} for a chain "
                "(--speculative-eagle-topk 1)"
            )
        tokens = steps + 1
    else:
        nodes = 1 + topk + (steps - 1) * topk * topk
        tokens = min(nodes, steps * topk + 1) if tokens is None else tokens
        if not steps + 1 <= tokens <= nodes:
            raise ValueError(
                f"--speculative-num-draft-tokens={tokens} must be {steps + 1} to {nodes} for a "
                f"tree of --speculative-num-steps {steps} and --speculative-eagle-topk {topk}"
            )
        backend = server_args.attention_backend
        if (server_args.page_size or 1) > 1 and backend not in _PAGED_TREE_BACKENDS:
            raise ValueError(
                f"--page-size={server_args.page_size} with --speculative-eagle-topk={topk} works "
                f"with the attention backends {', '.join(_PAGED_TREE_BACKENDS)}, not {backend!r}: "
                "use --page-size 1 or a chain"
            )
    server_args.speculative_num_steps = steps
    server_args.speculative_eagle_topk = topk
    server_args.speculative_num_draft_tokens = tokens


def resolve_prefill_graphs(server_args: Any) -> None:
    """Prefill without CUDA graphs: queries are captured, and embeddings given, in Python.

    Raises
    ------
    ValueError
        Such graphs were asked for.
    """
    config = server_args.cuda_graph_config
    if server_args.device != "cuda" or config.prefill.backend == Backend.DISABLED:
        return
    if (Phase.PREFILL, "backend") in server_args._cuda_graph_config_locked:
        raise ValueError(
            f"--cuda-graph-backend-prefill={config.prefill.backend} does not work with {NAME}: "
            "what scores a video is read between the layers of its prefill; leave it out"
        )
    server_args.cuda_graph_config = with_phase(config, Phase.PREFILL, backend=Backend.DISABLED)


def attention_backends(server_args: Any) -> dict[str, str]:
    """Attention backends that are set, by the flag that sets them, as ``{backend: flag}``."""
    return {
        getattr(server_args, field): f"--{field.replace('_', '-')}"
        for field in reversed(_BACKEND_FIELDS)
        if getattr(server_args, field) is not None
    }


def check_attention_backends(server_args: Any) -> None:
    """Raise ``ValueError`` naming the flag of a backend that cannot draft or verify on a GPU."""
    if server_args.device != "cuda":
        return
    for backend, flag in attention_backends(server_args).items():
        if backend not in _GPU_BACKENDS:
            raise ValueError(
                f"{flag}={backend} does not work with {NAME}: use one of {', '.join(_GPU_BACKENDS)}"
            )
        topk = server_args.speculative_eagle_topk or 1
        if backend in _CHAIN_ONLY_BACKENDS and topk > 1:
            trees = [name for name in _GPU_BACKENDS if name not in _CHAIN_ONLY_BACKENDS]
            raise ValueError(
                f"{flag}={backend} verifies chains only, and --speculative-eagle-topk={topk} asks "
                f"for a tree: use one of {', '.join(trees)}, or --speculative-eagle-topk 1"
            )


def register() -> None:
    """Make ``--speculative-algorithm SPECVLM`` known to SGLang; once per process."""
    contract.require("algorithm")
    memory_budget.install_in_scheduler(NAME, SpecVLMConfig.from_environment)
    attention_default.install(NAME)
    adaptive.install(NAME, why_not_adaptive)

    @SpeculativeAlgorithm.register(NAME, supports_overlap=True, spec_class=SpecVLMAlgorithm)
    def create_worker(server_args: Any) -> type:
        contract.require("worker")
        if server_args.speculative_draft_model_path is None:
            contract.require("self draft")
        if "flashinfer" in attention_backends(server_args):
            contract.require("flashinfer")
            attention_default.plan_on_host()
        from specvlm_sglang.worker import SpecVLMWorker

        return SpecVLMWorker
