"""The contract table, room by room. Add a line when you rely on something new in SGLang."""

from __future__ import annotations

from specvlm_sglang.host.contract import Symbol, declare

declare(
    "platform",
    (
        Symbol("sglang.srt.platforms.cpu:CpuDeviceMixin"),
        Symbol("sglang.srt.platforms.device_mixin:PlatformEnum.OOT"),
        Symbol("sglang.srt.platforms.interface:PlatformCapabilities"),
        Symbol("sglang.srt.platforms.interface:SRTPlatform.apply_server_args_defaults"),
        Symbol("sglang.srt.platforms.interface:SRTPlatform.get_default_attention_backend"),
        Symbol("sglang.srt.platforms.interface:SRTPlatform.init_backend"),
    ),
)

declare(
    "video",
    (
        Symbol("sglang.srt.utils.video_decoder:VideoDecoderWrapper.__init__", ("source",)),
        Symbol("sglang.srt.utils.video_decoder:_BACKEND"),
    ),
)

declare(
    "video errors",
    (Symbol("sglang.srt.utils.common:_normalize_video_input", ("video_file",)),),
)

declare(
    "frame count",
    (
        Symbol(
            "sglang.srt.multimodal.processors.qwen_vl:smart_nframes",
            ("ele", "total_frames", "video_fps"),
        ),
    ),
)

declare(
    "vision",
    (
        Symbol(
            "sglang.srt.layers.attention.vision:VisionSdpaAttention.forward",
            ("q", "k", "v", "bsz", "cu_seqlens", "attention_mask"),
        ),
    ),
)

declare(
    "linear",
    (
        Symbol(
            "sglang.srt.layers.quantization.unquant:UnquantizedLinearMethod.apply",
            ("layer", "x", "bias"),
        ),
        Symbol(
            "sglang.srt.layers.quantization.unquant:"
            "UnquantizedLinearMethod.process_weights_after_loading",
            ("layer",),
        ),
        Symbol("sglang.srt.layers.linear:ColumnParallelLinear"),
        Symbol("sglang.srt.layers.linear:RowParallelLinear"),
    ),
)

declare(
    "threads",
    (
        Symbol(
            "sglang.srt.utils.numa_utils:init_threads_binding",
            ("numa_index", "world_size"),
        ),
    ),
)

declare(
    "unpadded weights",
    (
        Symbol(
            "sglang.srt.configs.update_config:adjust_config_with_unaligned_cpu_tp",
            ("model_config", "load_config", "tp_size"),
        ),
    ),
)

declare(
    "flags",
    (
        Symbol("sglang.srt.server_args:ServerArgs.add_cli_args", ("parser",)),
        Symbol("sglang.srt.server_args:ServerArgs.from_cli_args", ("args",)),
    ),
)

declare(
    "exact vision",
    (
        Symbol("sglang.srt.models.qwen2_5_vl:Qwen2_5_VisionTransformer.forward", ("x", "grid_thw")),
        Symbol("sglang.srt.multimodal.processors.qwen_vl:preprocess_video", ("vr",)),
        Symbol(
            "sglang.srt.multimodal.processors.qwen_vl:QwenVLImageProcessor.process_mm_data_async"
        ),
        Symbol(
            "sglang.srt.multimodal.processors.qwen_vl:"
            "QwenVLImageProcessor.process_and_combine_mm_data_async",
            ("base_output", "mm_tokens"),
        ),
    ),
)

declare(
    "algorithm",
    (
        Symbol("sglang.srt.speculative.spec_info:SpeculativeAlgorithm.register", ("spec_class",)),
        Symbol("sglang.srt.speculative.spec_registry:CustomSpecAlgo.handle_server_args"),
        Symbol("sglang.srt.model_executor.cuda_graph_config:with_phase", ("config", "phase")),
        Symbol("sglang.srt.model_executor.cuda_graph_config:Phase.PREFILL"),
        Symbol("sglang.srt.model_executor.cuda_graph_config:Backend.DISABLED"),
        Symbol(
            "sglang.srt.managers.overlap_utils:FutureMap",
            ("device", "spec_algo", "needs_cpu_seq_lens", "needs_confidence_relay"),
        ),
    ),
)

_EAGLE = "sglang.srt.speculative.eagle_worker_v2"
_COMMON = "sglang.srt.speculative.eagle_worker_common"
_SCHEDULE = "sglang.srt.managers.schedule_batch"
_FORWARD = "sglang.srt.model_executor.forward_batch_info"

declare(
    "worker",
    (
        Symbol("sglang.srt.runtime_context:get_parallel"),
        Symbol("sglang.srt.runtime_context:get_schedule"),
        Symbol("sglang.srt.speculative.standalone_worker_v2:StandaloneWorkerV2"),
        Symbol("sglang.srt.speculative.standalone_worker_v2:StandaloneDraftWorker"),
        Symbol(
            f"{_EAGLE}:EAGLEWorkerV2._forward_prefill_batch",
            ("batch", "on_publish", "pp_proxy_tensors", "coordination_plan"),
        ),
        Symbol(f"{_EAGLE}:EAGLEWorkerV2.verify", ("batch", "grammar_barrier")),
        Symbol(f"{_EAGLE}:EagleDraftWorker.draft", ("batch", "with_topology")),
        Symbol(f"{_EAGLE}:EagleDraftWorker.draft_forward", ("forward_batch",)),
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
        Symbol("sglang.srt.speculative.spec_utils:renorm_draft_probs", ("next_token_logits",)),
        Symbol("sglang.srt.speculative.spec_utils:draft_tp_context", ("layout",)),
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
        Symbol(
            f"{_FORWARD}:ForwardBatch.compute_spec_mrope_positions",
            ("model_runner", "batch", "seq_positions"),
        ),
        Symbol(f"{_SCHEDULE}:Req._compute_max_prefix_len", ("input_len",)),
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
            ("input_ids", "forward_batch", "language_model"),
        ),
        Symbol(
            "sglang.srt.managers.scheduler_components.internal_state:"
            "SchedulerInternalStateController._add_speculative",
            ("state",),
        ),
    ),
)

declare(
    "requests",
    (
        Symbol("sglang.srt.sampling.sampling_params:SamplingParams.verify", ("vocab_size",)),
        Symbol("sglang.srt.sampling.sampling_params:SamplingParams.custom_params"),
        Symbol(
            "sglang.srt.managers.tokenizer_manager:TokenizerManager._validate_one_request",
            ("obj", "input_ids"),
        ),
        Symbol("sglang.srt.managers.io_struct:GenerateReqInput.return_hidden_states"),
    ),
)

declare(
    "prefill only",
    (
        Symbol(f"{_SCHEDULE}:Req.is_prefill_only"),
        Symbol(f"{_SCHEDULE}:ScheduleBatch.is_prefill_only"),
    ),
)

_STREAMING_SESSION = "sglang.srt.session.streaming_session"

declare(
    "sessions",
    (
        Symbol("sglang.srt.session.session_controller:Session.create_req", ("req",)),
        Symbol("sglang.srt.session.session_controller:SessionReqNode", ("req",)),
        Symbol(f"{_SCHEDULE}:Req.finished"),
        Symbol(f"{_SCHEDULE}:Req.output_ids_through_stop"),
        Symbol(f"{_STREAMING_SESSION}:StreamingSession.try_match_prefix", ("params",)),
        Symbol(f"{_STREAMING_SESSION}:StreamingSession.try_cache_finished_req", ("req",)),
        Symbol(f"{_STREAMING_SESSION}:StreamingSession.find_active_slot", ("req",)),
        Symbol(f"{_STREAMING_SESSION}:SessionSlot.kv"),
        Symbol(f"{_SCHEDULE}:ReqKvInfo.cache_protected_len"),
        Symbol("sglang.srt.mem_cache.radix_cache:RadixKey.limit"),
        Symbol("sglang.srt.mem_cache.base_prefix_cache:MatchResult.device_prefix_len"),
    ),
)

_TOKENIZER = "sglang.srt.managers.tokenizer_manager"

declare(
    "responses",
    (
        Symbol(
            f"{_TOKENIZER}:TokenizerManager._accumulate_request_meta_info",
            ("meta_info", "state", "key", "values"),
        ),
        Symbol(
            f"{_TOKENIZER}:TokenizerManager.update_request_meta_info",
            ("meta_info", "state", "customized_info", "index"),
        ),
        Symbol(f"{_TOKENIZER}:TokenizerManager._handle_abort_req", ("recv_obj",)),
        Symbol(f"{_TOKENIZER}:ReqState.out_list"),
        Symbol(f"{_TOKENIZER}:ReqState.finished"),
    ),
)

declare(
    "memory budget",
    (
        Symbol(
            "sglang.srt.model_executor.model_runner_components.spec_aux_hidden_state:"
            "resolve_spec_aux_hidden_state_config",
            ("model_config", "spec_algorithm", "is_draft_worker"),
        ),
        Symbol(
            "sglang.srt.model_executor.pool_configurator:DefaultPoolConfigurator.__init__",
            ("kvc",),
        ),
        Symbol("sglang.srt.runtime_context:get_parallel"),
    ),
)

_BACKENDS = "sglang.srt.layers.attention"

declare(
    "attention",
    (
        Symbol(f"{_BACKENDS}.attention_registry:register_attention_backend", ("name",)),
        Symbol(f"{_BACKENDS}.base_attn_backend:AttentionBackend.forward_extend"),
        Symbol("sglang.srt.arg_groups.choices:add_attention_backend_choices"),
        Symbol("sglang.srt.arg_groups.choices:add_draft_attention_backend_choices"),
        Symbol(
            "sglang.srt.speculative.draft_utils:DraftBackendFactory._create_backend",
            ("backend_name", "backend_map", "error_template", "stamps_children"),
        ),
    ),
)

declare(
    "min-p",
    (
        Symbol("sglang.srt.speculative.eagle_utils:tree_speculative_sampling_target_only"),
        Symbol("sglang.srt.sampling.sampling_batch_info:SamplingBatchInfo.need_min_p_sampling"),
        Symbol("sglang.srt.sampling.sampling_batch_info:SamplingBatchInfo.min_ps"),
    ),
)

_SAMPLING = "sglang.srt.sampling.sampling_batch_info:SamplingBatchInfo"
_VERIFY_INPUT = "sglang.srt.speculative.eagle_info:EagleVerifyInput"

declare(
    "verification",
    (
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
)

declare(
    "frontend video",
    (
        Symbol(
            "sglang.srt.multimodal.processors.qwen_vl:QwenVLImageProcessor.process_mm_data_async",
            ("image_data", "input_text", "request_obj"),
        ),
        Symbol("sglang.lang.interpreter:encode_video_base64", ("video_path", "num_frames")),
    ),
)

_PROCESSOR = "sglang.srt.multimodal.processors.base_processor"

declare(
    "llava onevision tables",
    (
        Symbol("sglang.srt.configs.model_config:multimodal_model_archs"),
        Symbol("sglang.srt.models.registry:ModelRegistry.models"),
        Symbol("sglang.srt.managers.multimodal_processor:PROCESSOR_MAPPING"),
    ),
)

declare(
    "llava onevision",
    (
        Symbol(
            "sglang.srt.managers.mm_utils:general_mm_embed_routine",
            ("input_ids", "forward_batch", "language_model", "multimodal_model"),
        ),
        Symbol("sglang.srt.managers.mm_utils:pad_mm_tokens", ("input_ids", "mm_inputs")),
        Symbol(
            "sglang.srt.models.qwen2:Qwen2ForCausalLM.forward",
            ("input_ids", "positions", "forward_batch", "input_embeds", "pp_proxy_tensors"),
        ),
        Symbol("sglang.srt.models.qwen2:Qwen2ForCausalLM.load_weights", ("weights",)),
        Symbol("sglang.srt.models.siglip:SiglipVisionEmbeddings", ("config",)),
        Symbol(
            "sglang.srt.models.siglip:SiglipEncoder",
            ("config", "act_layer", "flatten_batch", "prefix"),
        ),
        Symbol(
            "sglang.srt.models.siglip:SiglipEncoderLayer.forward",
            ("hidden_states", "attention_mask", "causal_attention_mask"),
        ),
        Symbol("sglang.srt.models.utils:WeightsMapper", ("orig_to_new_prefix",)),
    ),
)

declare(
    "llava onevision processor",
    (
        Symbol(
            f"{_PROCESSOR}:BaseMultimodalProcessor.load_mm_data",
            ("prompt", "multimodal_tokens", "image_data", "video_data"),
        ),
        Symbol(f"{_PROCESSOR}:BaseMultimodalProcessor._resolve_processor", ("processor",)),
        Symbol(f"{_PROCESSOR}:BaseMultimodalProcessor._finalize_mm_items", ("mm_items", "images")),
        Symbol(
            f"{_PROCESSOR}:BaseMultimodalProcessor._fast_image_processor_device", ("processor",)
        ),
        Symbol(f"{_PROCESSOR}:BaseMultimodalProcessor.keep_mm_features_on_device"),
        Symbol("sglang.srt.managers.mm_utils:hash_feature", ("f",)),
        Symbol(
            "sglang.srt.utils.video_decoder:VideoDecoderWrapper.get_frames_as_tensor",
            ("indices",),
        ),
    ),
)

declare(
    "llava onevision chat",
    (
        Symbol(
            "sglang.srt.parser.template_manager:TemplateManager.guess_chat_template_from_model_path",
            ("model_path",),
        ),
    ),
)

declare(
    "pixels",
    (
        Symbol(
            "sglang.srt.managers.mm_schedule:_move_items_to_device",
            ("items", "device", "data_embedding_func"),
        ),
    ),
)

declare(
    "attention default",
    (
        Symbol(
            "sglang.srt.arg_groups.model_override_base:get_default_attn_backend",
            ("server_args", "use_mla_backend", "model_config"),
        ),
        Symbol("sglang.srt.arg_groups.model_override_base:resolving_view", ("server_args",)),
        Symbol("sglang.srt.runtime_context:get_platform"),
    ),
)

_FLASHINFER = "sglang.srt.layers.attention.flashinfer_backend"

declare(
    "flashinfer",
    (
        # The target's queries are captured from here.
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
)

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

declare(
    "audit",
    (
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
)
