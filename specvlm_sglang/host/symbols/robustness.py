"""What relies on SGLang to keep a server up, whatever is sent to it."""

from __future__ import annotations

from specvlm_sglang.host.symbol import Symbol, fields

_SCHEDULER = "sglang.srt.managers.scheduler"
_PARTS = "sglang.srt.managers.scheduler_components"
_IO = "sglang.srt.managers.io_struct"
_MANAGER = f"{_PARTS}.weight_updater:SchedulerWeightUpdaterManager"
_UPDATER = "sglang.srt.model_executor.model_runner_components.weight_updater:WeightUpdater"
_BASE = "sglang.srt.multimodal.processors.base_processor"
_ITEM = "sglang.srt.managers.schedule_batch:MultimodalDataItem"

ROBUSTNESS: dict[str, tuple[Symbol, ...]] = {
    "process roles": (Symbol("sglang.srt.runtime_context:publish", ("server_args", "role")),),
    "refusals": (
        Symbol(f"{_SCHEDULER}:Scheduler.init_request_dispatcher"),
        Symbol(f"{_SCHEDULER}:Scheduler._request_dispatcher"),
        Symbol("sglang.utils:TypeBasedDispatcher._mapping"),
        Symbol(f"{_SCHEDULER}:Scheduler.handle_generate_request", ("recv_req",)),
        Symbol(f"{_SCHEDULER}:Scheduler.handle_embedding_request", ("recv_req",)),
        Symbol(f"{_SCHEDULER}:Scheduler.send_abort_output", ("abort_req", "req")),
        Symbol("sglang.srt.managers.communicator:FanOutCommunicator.__call__", ("obj",)),
        # Replies are found by their names.
        Symbol("sglang.srt.managers:io_struct"),
        Symbol(f"{_IO}:AbortReq.finished_reason"),
        Symbol(f"{_IO}:BaseReq.rid"),
        *fields(f"{_IO}:ReleaseMemoryOccupationReqOutput", "rid"),
        *fields(f"{_IO}:ResumeMemoryOccupationReqOutput", "rid"),
        *fields(f"{_IO}:UpdateWeightFromDiskReqOutput", "success", "message"),
    ),
    "profiling": (
        Symbol(f"{_PARTS}.profiler_manager:SchedulerProfilerManager._profile", ("recv_req",)),
        *fields(
            f"{_PARTS}.profiler_manager:SchedulerProfilerManager",
            "profile_in_progress",
            "torch_profiler",
        ),
        Symbol(f"{_IO}:ProfileReqOutput.success"),
        Symbol(f"{_IO}:ProfileReqOutput"),
        Symbol(f"{_IO}:ProfileReqType.START_PROFILE"),
        Symbol(f"{_IO}:ProfileReqType"),
        *fields(
            f"{_IO}:ProfileReq",
            "activities",
            "num_steps",
            "output_dir",
            "profile_by_stage",
            "profile_id",
            "profile_prefix",
            "req_type",
            "start_step",
        ),
        Symbol("sglang.srt.managers.tokenizer_manager:TokenizerManager._execute_profile", ("req",)),
    ),
    "memory release": (
        Symbol(f"{_MANAGER}.release_memory_occupation", ("recv_req",)),
        Symbol(f"{_MANAGER}.resume_memory_occupation", ("recv_req",)),
        *fields(_MANAGER, "is_fully_idle", "offload_tags", "scheduler"),
        Symbol(f"{_SCHEDULER}:Scheduler._engine_paused"),
        Symbol("sglang.srt.constants:GPU_MEMORY_ALL_TYPES"),
        Symbol("sglang.srt.runtime_context:get_device"),
    ),
    "weight updates": (
        Symbol(f"{_UPDATER}.update_weights_from_disk", ("model_path", "load_format")),
        Symbol(
            f"{_UPDATER}.init_weights_update_group",
            (
                "master_address",
                "master_port",
                "rank_offset",
                "world_size",
                "group_name",
                "backend",
            ),
        ),
        *fields(
            _UPDATER,
            "_model_update_group",
            "device",
            "get_model_runner",
            "model_config",
            "tp_rank",
        ),
        Symbol(
            "sglang.srt.utils.common:init_custom_process_group",
            ("backend", "init_method", "timeout"),
        ),
        Symbol(f"{_MANAGER}.begin_weight_update", ("recv_req",)),
        Symbol(f"{_MANAGER}._select_runners", ("selector",)),
    ),
    "runtime knobs": (
        Symbol(f"{_SCHEDULER}:Scheduler.slow_down", ("recv_req",)),
        *fields(f"{_IO}:SlowDownReqInput", "forward_sleep_time"),
        Symbol(
            f"{_PARTS}.internal_state:SchedulerInternalStateController.set_internal_state",
            ("recv_req",),
        ),
        *fields(f"{_IO}:SetInternalStateReq", "server_args"),
    ),
    "media inputs": (
        Symbol(
            f"{_BASE}:BaseMultimodalProcessor.load_mm_data",
            ("prompt", "multimodal_tokens", "image_data"),
        ),
        Symbol(
            f"{_BASE}:BaseMultimodalProcessor.process_and_combine_mm_data",
            ("base_output", "mm_tokens"),
        ),
        *fields(
            f"{_BASE}:MultimodalSpecialTokens",
            "combined_regex",
            "image_token",
            "image_token_regex",
            "video_token",
        ),
        *fields(f"{_BASE}:BaseMultiModalProcessorOutput", "images", "videos"),
        *fields(_ITEM, "feature", "format", "offsets", "precomputed_embeddings"),
        Symbol(f"{_ITEM}.is_precomputed_embedding"),
    ),
    "unforeseen": (
        Symbol(
            "sglang.srt.managers.tokenizer_manager:TokenizerManager.generate_request",
            ("obj", "request"),
        ),
        *fields(f"{_IO}:GenerateReqInput", "is_single", "rid"),
    ),
    "internvl padding": (
        Symbol(
            "sglang.srt.models.internvl:InternVLChatModel.pad_input_ids", ("input_ids", "mm_inputs")
        ),
        Symbol("sglang.srt.managers.mm_utils:pad_mm_tokens", ("input_ids", "mm_inputs")),
    ),
    "token inputs": (
        Symbol(
            "sglang.srt.managers.tokenizer_manager:TokenizerManager._validate_one_request",
            ("obj", "input_ids"),
        ),
        *fields(
            "sglang.srt.managers.io_struct:GenerateReqInput", "input_embeds", "top_logprobs_num"
        ),
    ),
    "wire": (
        Symbol(
            "sglang.srt.managers.tokenizer_manager:TokenizerManager._create_tokenized_object",
            ("obj", "input_text", "input_ids"),
        ),
        Symbol(f"{_IO}:msgpack_encode", ("obj",)),
        Symbol(f"{_IO}:msgpack_decode", ("data",)),
        *fields(
            f"{_IO}:TokenizedGenerateReqInput",
            "mm_inputs",
            "positional_embed_overrides",
            "time_stats",
        ),
        Symbol("sglang.srt.managers.embed_types:PositionalEmbeds"),
        Symbol("sglang.srt.managers:io_struct"),
    ),
    "chat requests": (
        Symbol(
            "sglang.srt.entrypoints.openai.serving_chat:OpenAIServingChat._validate_request",
            ("request",),
        ),
    ),
    "error text": (Symbol("sglang.srt.entrypoints.http_server:app"),),
}
