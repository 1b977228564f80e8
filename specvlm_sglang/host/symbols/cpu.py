"""What the CPU platform relies on."""

from __future__ import annotations

from specvlm_sglang.host.symbol import Symbol, fields

_BACKENDS = "sglang.srt.layers.attention"
_CACHE_LOCS = "sglang.kernels.ops.speculative.cache_locs"
_EAGLE = "sglang.kernels.ops.speculative.eagle"
_RENORM = "sglang.kernels.ops.sampling.renorm"
_SPEC_TREE = "sglang.kernels.ops.speculative.spec_tree"

CPU: dict[str, tuple[Symbol, ...]] = {
    # SGLang asks for a platform while its own modules are half imported: only those of platforms.
    "platform": (
        Symbol("sglang.srt.platforms.cpu:CpuDeviceMixin"),
        Symbol("sglang.srt.platforms.device_mixin:PlatformEnum.OOT"),
        Symbol("sglang.srt.platforms.interface:PlatformCapabilities"),
        Symbol("sglang.srt.platforms.interface:SRTPlatform.apply_server_args_defaults"),
        Symbol("sglang.srt.platforms.interface:SRTPlatform.get_default_attention_backend"),
        Symbol("sglang.srt.platforms.interface:SRTPlatform.init_backend"),
    ),
    "platform defaults": fields(
        "sglang.srt.server_args:ServerArgs",
        "attention_backend",
        "device",
        "disable_overlap_schedule",
        "max_running_requests",
        "max_total_tokens",
        "mem_fraction_static",
        "sleep_on_idle",
    ),
    "cpu arguments": (
        Symbol("sglang.srt.arg_groups.pipeline:run_resolution_pipeline", ("server_args",)),
        *fields(
            "sglang.srt.server_args:ServerArgs",
            "device",
            "enable_deterministic_inference",
            "model_path",
            "quantization",
            "rl_on_policy_target",
            "enable_memory_saver",
            "speculative_draft_model_path",
            "speculative_draft_model_quantization",
            "trust_remote_code",
        ),
    ),
    "attention": (
        Symbol(f"{_BACKENDS}.attention_registry:register_attention_backend", ("name",)),
        Symbol(f"{_BACKENDS}.base_attn_backend:AttentionBackend.forward_extend"),
        Symbol("sglang.srt.layers.radix_attention:AttentionType"),
        Symbol("sglang.srt.mem_cache.memory_pool:KVWriteLoc"),
        Symbol("sglang.srt.mem_cache.swa_memory_pool:SWAKVPool"),
        Symbol("sglang.srt.speculative.spec_utils:resolve_draft_decode_window"),
        Symbol("sglang.srt.arg_groups.choices:ATTENTION_BACKEND_CHOICES"),
        Symbol("sglang.srt.arg_groups.choices:DRAFT_ATTENTION_BACKEND_CHOICES"),
        Symbol("sglang.srt.arg_groups.choices:add_attention_backend_choices"),
        Symbol("sglang.srt.arg_groups.choices:add_draft_attention_backend_choices"),
        Symbol(
            "sglang.srt.speculative.draft_utils:DraftBackendFactory._create_backend",
            ("backend_name", "backend_map", "error_template", "stamps_children"),
        ),
    ),
    "kernels": (
        Symbol(
            "sglang.srt.mem_cache.allocation:assign_req_to_token_pool_func",
            (
                "req_pool_indices",
                "req_to_token",
                "start_offset",
                "end_offset",
                "out_cache_loc",
                "batch_size",
            ),
        ),
        Symbol(
            "sglang.kernels.ops.memory.common:get_last_loc_triton",
            ("req_to_token", "req_pool_indices_tensor", "prefix_lens_tensor"),
        ),
        Symbol(
            f"{_CACHE_LOCS}:assign_draft_cache_locs_contiguous_func",
            (
                "req_pool_indices",
                "req_to_token",
                "seq_lens",
                "out_cache_loc",
                "topk",
                "num_cols",
                "positions",
                "mrope",
            ),
        ),
        Symbol(
            f"{_CACHE_LOCS}:assign_extend_cache_locs_func",
            (
                "req_pool_indices",
                "req_to_token",
                "start_offset",
                "end_offset",
                "batch_size",
                "draft_token_num",
                "device",
            ),
        ),
        Symbol(
            f"{_CACHE_LOCS}:assign_extend_cache_locs_uniform_func",
            (
                "req_pool_indices",
                "req_to_token",
                "start_offset",
                "batch_size",
                "draft_token_num",
                "device",
                "full_v2p",
                "swa_v2p",
                "full_out",
                "swa_out",
                "page_size",
                "positions_out",
                "anchor_src",
                "anchor_out",
            ),
        ),
        Symbol(
            f"{_CACHE_LOCS}:fill_front_out_cache_loc_func",
            ("num_front", "out_cache_loc", "front_out_cache_loc"),
        ),
        Symbol(
            f"{_EAGLE}:fill_accept_out_cache_loc_func",
            ("accept_index", "out_cache_loc", "accept_out_cache_loc", "size"),
        ),
        Symbol(
            f"{_EAGLE}:fill_bonus_tokens_func",
            ("accept_tokens", "accept_lens", "bonus_tokens", "accept_stride", "batch_size"),
        ),
        Symbol(
            f"{_SPEC_TREE}:build_tree_kernel_efficient_func",
            (
                "parent_list",
                "top_scores_index",
                "seq_lens",
                "tree_mask",
                "positions",
                "retrieve_index",
                "retrieve_next_token",
                "retrieve_next_sibling",
                "topk",
                "spec_steps",
                "num_verify_tokens",
                "tree_mask_mode",
            ),
        ),
        Symbol(
            f"{_SPEC_TREE}:verify_tree_greedy_func",
            (
                "predicts",
                "accept_index",
                "accept_token_num",
                "candidates",
                "retrieve_index",
                "retrieve_next_token",
                "retrieve_next_sibling",
                "target_predict",
                "topk",
            ),
        ),
        Symbol(
            "sglang.kernels.ops.speculative.verify_sampling:tree_speculative_sampling_target_only"
        ),
        Symbol(f"{_RENORM}:top_k_renorm_prob"),
        Symbol(f"{_RENORM}:top_p_renorm_prob"),
        Symbol(
            "sglang.kernels.ops.sampling.murmur_hash:murmur_hash32",
            ("seed", "positions", "col_indices"),
        ),
        Symbol(
            "sglang.srt.mem_cache.memory_pool:MHATokenToKVPool._init_kv_copy_and_warmup", ("self",)
        ),
        *fields(
            "sglang.srt.mem_cache.memory_pool:MHATokenToKVPool",
            "_kv_copy_config",
            "use_native_move_kv_cache",
        ),
    ),
    "vision": (
        Symbol(
            "sglang.srt.layers.attention.vision:VisionSdpaAttention.forward",
            ("q", "k", "v", "bsz", "cu_seqlens", "attention_mask"),
        ),
    ),
    "internvl pixels": (
        Symbol("sglang.srt.models.internvl:InternVLChatModel.extract_feature", ("pixel_values",)),
        Symbol("sglang.srt.models.internvl:InternVisionModel"),
    ),
    "linear": (
        Symbol(
            "sglang.srt.layers.quantization.unquant:UnquantizedLinearMethod.apply",
            ("layer", "x", "bias"),
        ),
        Symbol(
            "sglang.srt.layers.quantization.unquant:"
            "UnquantizedLinearMethod.process_weights_after_loading",
            ("layer",),
        ),
        Symbol(
            "sglang.srt.layers.quantization.unquant:"
            "UnquantizedLinearMethod.restore_weights_before_loading",
            ("layer",),
        ),
        Symbol("sglang.srt.layers.linear:ColumnParallelLinear"),
        Symbol("sglang.srt.layers.linear:RowParallelLinear"),
    ),
    "threads": (
        Symbol(
            "sglang.srt.utils.numa_utils:init_threads_binding",
            ("numa_index", "world_size"),
        ),
    ),
    "unpadded weights": (
        Symbol(
            "sglang.srt.configs.update_config:adjust_config_with_unaligned_cpu_tp",
            ("model_config", "load_config", "tp_size"),
        ),
    ),
}
