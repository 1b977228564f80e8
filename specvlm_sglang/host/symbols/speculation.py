"""What drafting and verifying rely on, in SGLang's scheduler."""

from __future__ import annotations

from specvlm_sglang.host.symbol import Symbol, fields

_EAGLE = "sglang.srt.speculative.eagle_worker_v2"
_COMMON = "sglang.srt.speculative.eagle_worker_common"
_SCHEDULE = "sglang.srt.managers.schedule_batch"
_FORWARD = "sglang.srt.model_executor.forward_batch_info"
_STREAMING_SESSION = "sglang.srt.session.streaming_session"
_SAMPLING = "sglang.srt.sampling.sampling_batch_info:SamplingBatchInfo"
_VERIFY_INPUT = "sglang.srt.speculative.eagle_info:EagleVerifyInput"
_PENALTIES = "sglang.srt.sampling.penaltylib.orchestrator"
_FLASHINFER = "sglang.srt.layers.attention.flashinfer_backend"

_SCHEDULER = "sglang.srt.managers.scheduler"
_BATCH_PARTS = (
    "reqs",
    "req_to_token_pool",
    "token_to_kv_pool_allocator",
    "tree_cache",
    "model_config",
    "enable_overlap",
    "spec_algorithm",
)
_REQ_SETTINGS = (
    "rid",
    "origin_input_text",
    "origin_input_ids",
    "sampling_params",
    "extra_key",
    "cache_salt",
    "require_reasoning",
    "eos_token_ids",
    "vocab_size",
)

SPECULATION: dict[str, tuple[Symbol, ...]] = {
    "step_bytes": (
        Symbol("sglang.srt.mem_cache.memory_pool:MHATokenToKVPool.get_kv_size_bytes"),
        Symbol("sglang.srt.mem_cache.memory_pool:MHATokenToKVPool.size"),
        Symbol("sglang.srt.mem_cache.memory_pool:MHATokenToKVPool.page_size"),
        Symbol("sglang.srt.model_executor.model_runner:ModelRunner.token_to_kv_pool"),
    ),
    "early_exit": (
        Symbol("sglang.srt.models.qwen2:Qwen2Model.end_layer"),
        Symbol("sglang.srt.models.qwen3:Qwen3Model.end_layer"),
        Symbol("sglang.srt.models.qwen3_vl:Qwen3LLMModel.end_layer"),
        Symbol("sglang.srt.models.glm4:Glm4Model.end_layer"),
        Symbol("sglang.srt.models.glm4_moe:Glm4MoeModel.end_layer"),
    ),
    "adaptive": (
        Symbol(
            "sglang.srt.speculative.adaptive_spec_params:adaptive_unsupported_reason",
            ("server_args",),
        ),
        Symbol(
            "sglang.srt.arg_groups.speculative_hook:_init_adaptive_speculative_params",
            ("server_args",),
        ),
    ),
    "algorithm": (
        Symbol("sglang.srt.speculative.spec_info:SpeculativeAlgorithm.register", ("spec_class",)),
        Symbol("sglang.srt.speculative.spec_registry:CustomSpecAlgo.handle_server_args"),
        Symbol("sglang.srt.model_executor.cuda_graph_config:with_phase", ("config", "phase")),
        Symbol("sglang.srt.model_executor.cuda_graph_config:Phase.PREFILL"),
        Symbol("sglang.srt.model_executor.cuda_graph_config:Backend.DISABLED"),
        *fields(
            "sglang.srt.server_args:ServerArgs",
            "cuda_graph_config",
            "disable_overlap_schedule",
            "enable_mixed_chunk",
            "max_running_requests",
            "mm_attention_backend",
            "speculative_eagle_topk",
            "speculative_adaptive",
            "speculative_num_draft_tokens",
            "speculative_num_steps",
        ),
        Symbol(
            "sglang.srt.managers.overlap_utils:FutureMap",
            ("device", "spec_algo", "needs_cpu_seq_lens", "needs_confidence_relay"),
        ),
    ),
    "worker": (
        Symbol("sglang.srt.runtime_context:get_device"),
        Symbol("sglang.srt.runtime_context:get_parallel"),
        Symbol("sglang.srt.runtime_context:get_schedule"),
        Symbol("sglang.srt.runtime_context:get_spec"),
        Symbol("sglang.srt.speculative.base_spec_worker:BaseSpecWorker"),
        Symbol("sglang.srt.speculative.spec_info:SpeculativeAlgorithm.from_string", ("name",)),
        Symbol("sglang.srt.speculative.standalone_worker_v2:StandaloneWorkerV2"),
        Symbol("sglang.srt.speculative.base_spec_worker:BaseSpecWorker.weight_update_runners"),
        Symbol("sglang.srt.speculative.standalone_worker_v2:StandaloneDraftWorker"),
        Symbol(
            f"{_EAGLE}:EAGLEWorkerV2._forward_prefill_batch",
            ("batch", "on_publish", "pp_proxy_tensors", "coordination_plan"),
        ),
        Symbol(f"{_EAGLE}:EAGLEWorkerV2.verify", ("batch", "grammar_barrier")),
        Symbol(f"{_EAGLE}:EagleDraftWorker.draft", ("batch", "with_topology")),
        Symbol(f"{_EAGLE}:EagleDraftWorker.draft_forward", ("forward_batch",)),
        Symbol(
            "sglang.srt.speculative.eagle_utils:organize_draft_results",
            ("score_list", "token_list", "parents_list", "num_draft_token"),
        ),
        Symbol(
            "sglang.srt.speculative.spec_utils:select_top_k_tokens",
            ("i", "topk_p", "topk_index", "hidden_states", "scores", "topk"),
        ),
        Symbol(
            f"{_EAGLE}:EagleDraftWorker._draft_extend_for_decode",
            ("batch", "batch_result", "kv_loc_plan"),
        ),
        Symbol(
            f"{_COMMON}:prepare_for_draft",
            (
                "draft_input",
                "req_to_token_pool",
                "batch",
                "cuda_graph_runner",
                "draft_model_runner",
                "topk",
                "num_steps",
                "target_translator",
                "num_draft_tokens",
            ),
        ),
        Symbol(
            f"{_COMMON}:build_eagle_verify_input",
            (
                "batch",
                "draft_input",
                "parent_list",
                "top_scores_index",
                "draft_tokens",
                "draft_probs",
                "target_worker",
                "topk",
                "num_steps",
                "num_draft_tokens",
                "tree_mask_mode",
                "device",
            ),
        ),
        Symbol(
            "sglang.kernels.ops.speculative.cache_locs:assign_extend_cache_locs_uniform_func",
            (
                "req_pool_indices",
                "req_to_token",
                "start_offset",
                "batch_size",
                "draft_token_num",
                "device",
            ),
        ),
        Symbol(
            "sglang.srt.speculative.adaptive_runtime_state:AdaptiveController", ("worker", "policy")
        ),
        Symbol(
            "sglang.srt.speculative.adaptive_runtime_state:AdaptiveController"
            ".activate_step_by_batch",
            ("batch_size",),
        ),
        Symbol(
            "sglang.srt.speculative.adaptive_runtime_state:AdaptiveController.on_verify_complete",
            ("num_correct_drafts_per_req", "batch_size"),
        ),
        Symbol(
            f"{_EAGLE}:EAGLEWorkerV2.build_adaptive_runtime_state",
            ("speculative_num_steps", "speculative_num_draft_tokens", "cuda_graph_bs"),
        ),
        Symbol(f"{_EAGLE}:EAGLEWorkerV2.activate_step_by_batch", ("batch_size",)),
        Symbol("sglang.srt.speculative.spec_utils:renorm_draft_probs", ("next_token_logits",)),
        Symbol("sglang.srt.speculative.spec_utils:draft_tp_context", ("layout",)),
        Symbol("sglang.srt.speculative.spec_utils:get_plan_stream", ("device",)),
        Symbol("sglang.srt.speculative.spec_utils:spec_stage_span", ("name",)),
        Symbol("sglang.srt.utils.common:fast_topk", ("values", "topk", "dim")),
        Symbol(
            "sglang.srt.speculative.eagle_info:EagleDraftExtendInput",
            ("hidden_states", "num_tokens_per_req", "num_tokens_for_logprob_per_req"),
        ),
        Symbol("sglang.srt.speculative.eagle_info:EagleDraftInput"),
        Symbol(
            "sglang.srt.managers.tp_worker:TpModelWorker.alloc_memory_pool",
            ("memory_pool_config", "req_to_token_pool", "token_to_kv_pool_allocator"),
        ),
        Symbol("sglang.srt.mem_cache.memory_pool:ReqToTokenPool.attach_aux_cache", ("aux_cache",)),
        Symbol("sglang.srt.mem_cache.memory_pool:ReqToTokenPool.free_rows", ("indices",)),
        Symbol(
            f"{_FORWARD}:ForwardBatch.init_new",
            (
                "batch",
                "model_runner",
                "capture_hidden_mode",
                "return_hidden_states_before_norm",
            ),
        ),
        Symbol(f"{_FORWARD}:CaptureHiddenMode.NULL"),
        Symbol(f"{_FORWARD}:ForwardMode.EXTEND"),
        *fields(f"{_FORWARD}:ForwardBatch", "mm_inputs", "mrope_positions", "positions"),
        # Set on the view that the draft prefills, or for as long as the draft sees a batch.
        *fields(
            f"{_SCHEDULE}:ScheduleBatch",
            "decoding_reqs",
            "extend_input_logprob_token_ids",
            "extend_lens",
            "extend_logprob_start_lens",
            "extend_num_tokens",
            "has_grammar",
            "input_ids",
            "multimodal_inputs",
            "orig_seq_lens",
            "forward_mode",
            "out_cache_loc",
            "prefix_lens",
            "req_pool_indices",
            "req_pool_indices_cpu",
            "reqs",
            "return_logprob",
            "seq_lens",
            "seq_lens_cpu",
            "seq_lens_sum",
            "spec_info",
        ),
        *fields(
            "sglang.srt.managers.utils:GenerationBatchResult", "new_seq_lens", "next_draft_input"
        ),
        Symbol(
            f"{_FORWARD}:ForwardBatch.compute_spec_mrope_positions",
            ("model_runner", "batch", "seq_positions"),
        ),
        Symbol(f"{_SCHEDULE}:Req._compute_max_prefix_len", ("input_len",)),
        Symbol(f"{_SCHEDULE}:Req.finished"),
        Symbol(f"{_SCHEDULE}:Req.is_retracted"),
        Symbol(
            f"{_SCHEDULER}:Scheduler.is_disable_overlap_for_batch",
            ("batch", "last_batch"),
        ),
        Symbol(f"{_SCHEDULER}:Scheduler.result_queue"),
        Symbol(f"{_SCHEDULE}:Req.update_spec_correct_drafts_histogram", ("num_correct_drafts",)),
        # Reports travel as entries of these, one a token.
        Symbol("sglang.srt.layers.logits_processor:LogitsProcessorOutput.customized_info"),
        Symbol(
            "sglang.srt.managers.scheduler_components.batch_result_processor:"
            "SchedulerBatchResultProcessor._maybe_collect_customized_info",
            ("req", "logits_output"),
        ),
        Symbol(f"{_SCHEDULE}:MultimodalDataItem.offsets"),
        Symbol(f"{_SCHEDULE}:MultimodalInputs.mrope_position_delta"),
        Symbol(
            "sglang.srt.managers.mm_utils:prepare_mm_inputs",
            ("input_ids", "forward_batch", "language_model", "kwargs"),
        ),
        # What `kwargs` carries to the first layers of a model with deepstack features.
        Symbol(
            "sglang.srt.models.qwen3_vl:Qwen3LLMModel.forward",
            ("input_ids", "positions", "forward_batch", "input_deepstack_embeds"),
        ),
        Symbol(
            "sglang.srt.managers.scheduler_components.internal_state:"
            "SchedulerInternalStateController._add_speculative",
            ("state",),
        ),
    ),
    "self draft": (
        Symbol("sglang.srt.speculative.base_spec_worker:EagleDraftWorkerBase"),
        Symbol(
            "sglang.srt.speculative.base_spec_worker:"
            "EagleDraftWorkerBase._rebuild_topk1_chain_buffers"
        ),
        Symbol("sglang.srt.configs.draft_parallel:DraftParallelSpec", ("tp_execution",)),
        Symbol("sglang.srt.configs.draft_parallel:DraftTPExecution.TARGET_LAYOUT"),
        Symbol(
            "sglang.srt.speculative.draft_parallel:resolve_draft_parallel_layout", ("model_spec",)
        ),
        Symbol(
            "sglang.srt.speculative.draft_utils:DraftBackendFactory",
            ("draft_model_runner", "topk", "speculative_num_steps"),
        ),
        Symbol("sglang.srt.speculative.draft_utils:DraftBackendFactory.create_decode_backend"),
        *fields("sglang.srt.speculative.eagle_info:EagleDraftInput", "topk_index", "topk_p"),
        *fields(
            f"{_EAGLE}:EagleDraftWorker",
            "hot_token_id",
            "index_share_for_mtp_iteration",
            "seed_dsa_topk_from_draft_extend",
        ),
        Symbol("sglang.srt.speculative.eagle_utils:default_tree_mask_mode"),
        Symbol("sglang.srt.model_executor.forward_context:ForwardContext", ("attn_backend",)),
        Symbol(
            "sglang.srt.model_executor.forward_context:forward_context", ("ctx", "forward_batch")
        ),
        *fields(f"{_FORWARD}:ForwardBatch", "input_ids", "out_cache_loc", "positions"),
        *fields(f"{_FORWARD}:ForwardBatch", "spec_info", "mrope_positions"),
        Symbol(f"{_FORWARD}:ForwardBatch.mark_forward_metadata_ready"),
        # What a second view of the target's runner has of its own.
        *fields(
            "sglang.srt.model_executor.model_runner:ModelRunner",
            "decode_cuda_graph_runner",
            "canary_manager",
            "eager_runner",
            "is_draft_worker",
            "prefill_cuda_graph_runner",
            "req_to_token_pool",
        ),
        *fields("sglang.srt.mem_cache.memory_pool:ReqToTokenPool", "req_to_token"),
    ),
    "prefill only": (
        Symbol(f"{_SCHEDULE}:Req.is_prefill_only"),
        Symbol(f"{_SCHEDULE}:ScheduleBatch.is_prefill_only"),
        Symbol(
            "sglang.srt.managers.scheduler_components.logprob_result_processor:"
            "SchedulerLogprobResultProcessor.add_logprob_return_values",
            ("i", "req"),
        ),
        *fields(
            f"{_SCHEDULE}:ReqLogprob", "output_token_logprobs_idx", "output_token_logprobs_val"
        ),
    ),
    "stops": (
        Symbol(f"{_SCHEDULE}:Req.update_finish_state", ("new_accepted_len",)),
        Symbol(f"{_SCHEDULE}:Req.finished"),
        *fields(
            f"{_SCHEDULE}:Req",
            "finished_len",
            "grammar",
            "output_ids",
            "sampling_params",
            "to_finish",
        ),
        *fields(
            "sglang.srt.sampling.sampling_params:SamplingParams", "stop_regex_strs", "stop_strs"
        ),
    ),
    "sessions": (
        Symbol("sglang.srt.session.session_controller:Session.create_req", ("req",)),
        Symbol("sglang.srt.session.session_controller:SessionReqNode", ("req",)),
        Symbol(f"{_SCHEDULE}:Req.finished"),
        Symbol(f"{_SCHEDULE}:Req.output_ids_through_stop"),
        *fields(f"{_SCHEDULE}:Req", "output_ids"),
        Symbol(f"{_STREAMING_SESSION}:StreamingSession.try_match_prefix", ("params",)),
        Symbol(f"{_STREAMING_SESSION}:StreamingSession.try_cache_finished_req", ("req",)),
        Symbol(f"{_STREAMING_SESSION}:StreamingSession.find_active_slot", ("req",)),
        Symbol(f"{_STREAMING_SESSION}:SessionSlot.kv"),
        Symbol(f"{_SCHEDULE}:ReqKvInfo.cache_protected_len"),
        Symbol("sglang.srt.mem_cache.radix_cache:RadixKey.limit"),
        Symbol("sglang.srt.mem_cache.base_prefix_cache:MatchResult.device_prefix_len"),
    ),
    "memory budget": (
        Symbol(
            "sglang.srt.model_executor.model_runner_components.spec_aux_hidden_state:"
            "resolve_spec_aux_hidden_state_config",
            ("model_config", "spec_algorithm", "is_draft_worker"),
        ),
        Symbol(
            "sglang.srt.model_executor.pool_configurator:DefaultPoolConfigurator.__init__",
            ("kvc",),
        ),
        *fields(
            "sglang.srt.model_executor.pool_configurator:DefaultPoolConfigurator",
            "_cell_size",
            "_fixed_overhead_bytes",
        ),
        *fields(
            "sglang.srt.model_executor.model_runner_components.spec_aux_hidden_state:"
            "SpecAuxHiddenStateConfig",
            "draft_kv_num_layers",
            "draft_model_config",
            "eagle_draft_num_layers",
        ),
        Symbol("sglang.srt.runtime_context:get_parallel"),
        Symbol("sglang.srt.runtime_context:get_spec"),
    ),
    "min-p": (
        Symbol("sglang.srt.speculative.eagle_utils:tree_speculative_sampling_target_only"),
        Symbol("sglang.srt.sampling.sampling_batch_info:SamplingBatchInfo.need_min_p_sampling"),
        Symbol("sglang.srt.sampling.sampling_batch_info:SamplingBatchInfo.min_ps"),
    ),
    "penalty order": (
        Symbol(f"{_PENALTIES}:BatchedPenalizerOrchestrator.__init__"),
        *fields(f"{_PENALTIES}:BatchedPenalizerOrchestrator", "penalizers"),
        Symbol(f"{_PENALTIES}:_BatchedPenalizer.is_multiplicative"),
    ),
    "mamba states": (
        Symbol(
            "sglang.srt.speculative.spec_utils:commit_mamba_states_after_verify",
            ("target_worker", "batch"),
        ),
        Symbol("sglang.srt.configs.hybrid_arch:mambaish_config", ("model_config",)),
    ),
    "verification": (
        Symbol(
            "sglang.srt.speculative.eagle_utils:eagle_sample",
            ("verify_input", "batch", "logits_output", "grammar_mask"),
        ),
        Symbol(f"{_SCHEDULE}:ScheduleBatch.cumulate_penalty_output_tokens"),
        Symbol(
            "sglang.srt.layers.sampler:apply_custom_logit_processor",
            ("logits", "sampling_batch_info"),
        ),
        Symbol(f"{_SAMPLING}.acc_additive_penalties"),
        Symbol(f"{_SAMPLING}.acc_scaling_penalties"),
        Symbol(f"{_SAMPLING}.has_custom_logit_processor"),
        Symbol(f"{_SAMPLING}.custom_logit_processor"),
        Symbol(f"{_SAMPLING}.logit_bias"),
        Symbol(f"{_SAMPLING}.copy_for_forward"),
        Symbol(f"{_VERIFY_INPUT}.draft_token"),
        Symbol(f"{_VERIFY_INPUT}.retrieve_next_token"),
        Symbol(f"{_VERIFY_INPUT}.retrieve_next_sibling"),
        Symbol(f"{_VERIFY_INPUT}.spec_steps"),
        Symbol(f"{_VERIFY_INPUT}.draft_token_num"),
        Symbol(
            "sglang.srt.sampling.penaltylib.orchestrator:"
            "BatchedPenalizerOrchestrator.cumulate_output_tokens",
            ("output_ids",),
        ),
        Symbol("sglang.srt.sampling.penaltylib.min_new_tokens:BatchedMinNewTokensPenalizer"),
    ),
    "attention default": (
        Symbol(
            "sglang.srt.arg_groups.model_override_base:get_default_attn_backend",
            ("server_args", "use_mla_backend", "model_config"),
        ),
        Symbol("sglang.srt.arg_groups.model_override_base:resolving_view", ("server_args",)),
        Symbol("sglang.srt.runtime_context:get_platform"),
    ),
    "flashinfer": (
        # The target's queries are scored here.
        Symbol(
            f"{_FLASHINFER}:FlashInferAttnBackend.forward_extend",
            ("q", "k", "v", "layer", "forward_batch"),
        ),
        # These read a drafting batch's lengths, positions (as lengths) and private table.
        Symbol(
            f"{_FLASHINFER}:FlashInferMultiStepDraftBackend.__init__",
            ("model_runner", "topk", "speculative_num_steps"),
        ),
        Symbol(
            f"{_FLASHINFER}:FlashInferMultiStepDraftBackend.common_template",
            ("forward_batch", "kv_indices_buffer", "call_fn"),
        ),
        Symbol(
            "sglang.srt.speculative.draft_utils:"
            "DraftBackendFactory._create_flashinfer_decode_backend"
        ),
        Symbol(
            "sglang.srt.speculative.draft_utils:"
            "DraftBackendFactory._create_flashinfer_prefill_backend"
        ),
        # Tree masks of the verification, and paged draft decoding.
        Symbol(
            "flashinfer:BatchPrefillWithPagedKVCacheWrapper.plan",
            ("qo_indptr", "paged_kv_indptr", "paged_kv_indices", "custom_mask"),
        ),
        Symbol(
            "flashinfer:BatchDecodeWithPagedKVCacheWrapper.plan", ("indptr", "indices", "page_size")
        ),
    ),
    "audit": (
        *fields(
            f"{_SCHEDULE}:Req",
            "extend_end",
            "lock",
            "multimodal_inputs",
            "skip_radix_cache_insert",
            "tokenizer",
        ),
        Symbol(f"{_SCHEDULER}:Scheduler.on_idle"),
        Symbol(f"{_SCHEDULER}:Scheduler.maybe_sleep_on_idle"),
        Symbol(f"{_SCHEDULER}:Scheduler.maybe_send_health_check_signal"),
        Symbol(f"{_SCHEDULER}:Scheduler.process_input_requests", ("recv_reqs",)),
        Symbol(f"{_SCHEDULER}:Scheduler.flush_cache", ("empty_cache",)),
        Symbol(f"{_SCHEDULER}:Scheduler.is_fully_idle", ("for_health_check", "ignore_waiting")),
        Symbol(f"{_SCHEDULER}:Scheduler.collect_inflight_reqs"),
        Symbol("sglang.srt.managers.utils:is_health_check_generate_req", ("recv_req",)),
        # What of a finished request is kept, and asked again.
        Symbol(f"{_SCHEDULE}:Req.__init__", _REQ_SETTINGS),
        Symbol(f"{_SCHEDULE}:Req.update_finish_state", ("new_accepted_len",)),
        Symbol(f"{_SCHEDULE}:Req.output_ids_through_stop"),
        Symbol(f"{_SCHEDULE}:FINISH_ABORT"),
        Symbol(f"{_SCHEDULE}:MultimodalInputs.mm_items"),
        Symbol(f"{_SCHEDULE}:MultimodalDataItem.has_cuda_ipc_proxy"),
        # How a server without speculation prefills and decodes.
        Symbol(f"{_SCHEDULE}:Req.init_next_round_input", ("tree_cache",)),
        Symbol(f"{_SCHEDULE}:ReqKvInfo.holds_kv"),
        Symbol(f"{_SCHEDULE}:ScheduleBatch.init_new", _BATCH_PARTS),
        Symbol(f"{_SCHEDULE}:ScheduleBatch.prepare_for_extend"),
        Symbol(f"{_SCHEDULE}:ScheduleBatch.prepare_for_decode"),
        Symbol("sglang.srt.managers.overlap_utils:resolve_forward_inputs", ("batch", "future_map")),
        Symbol("sglang.srt.managers.tp_worker:TpModelWorker.forward_batch_generation", ("batch",)),
        Symbol("sglang.srt.mem_cache.common:checkpoint_kv_cache", ("req", "tree_cache")),
        Symbol("sglang.srt.mem_cache.common:release_kv_cache", ("req", "tree_cache", "checkpoint")),
        Symbol("sglang.srt.mem_cache.base_prefix_cache:BasePrefixCache.lock", ("node",)),
        Symbol("sglang.srt.mem_cache.base_prefix_cache:BasePrefixCache.unlock", ("lock",)),
        Symbol("sglang.srt.mem_cache.base_prefix_cache:BasePrefixCache.evictable_size"),
        Symbol(
            "sglang.srt.constrained.grammar_manager:GrammarManager.process_req_with_grammar",
            ("req",),
        ),
        Symbol("sglang.srt.speculative.spec_info:SpeculativeAlgorithm.NONE"),
        *(
            Symbol(f"sglang.srt.managers.io_struct:{message}")
            for message in (
                "AbortReq",
                "BeginWeightUpdateReqInput",
                "EndWeightUpdateReqInput",
                "GetInternalStateReq",
                "ReleaseMemoryOccupationReqInput",
                "ResumeMemoryOccupationReqInput",
                "UpdateWeightFromDiskReqInput",
                "UpdateWeightsFromDistributedReqInput",
                "UpdateWeightsFromIPCReqInput",
                "UpdateWeightsFromTensorReqInput",
            )
        ),
    ),
}
