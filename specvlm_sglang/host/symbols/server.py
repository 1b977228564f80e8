"""What flags, requests and responses rely on, outside SGLang's scheduler."""

from __future__ import annotations

from specvlm_sglang.host.symbol import Symbol, fields

_PROTOCOL = "sglang.srt.entrypoints.openai.protocol"
_REQUEST = "sglang.srt.managers.io_struct:GenerateReqInput"
_STATS = "sglang.srt.observability.req_time_stats"
_TOKENIZER = "sglang.srt.managers.tokenizer_manager"

SERVER: dict[str, tuple[Symbol, ...]] = {
    "configurations": (
        Symbol("sglang.srt.utils.hf_transformers.common:AutoConfig"),
        Symbol("sglang.srt.utils.hf_transformers.common:get_context_length", ("config",)),
    ),
    "flags": (
        Symbol("sglang.srt.server_args:ServerArgs.add_cli_args", ("parser",)),
        Symbol("sglang.srt.server_args:ServerArgs.from_cli_args", ("args",)),
    ),
    "plugin loading": (Symbol("sglang.srt.plugins:load_plugins"),),
    "engine keywords": (Symbol("sglang.srt.entrypoints.engine:Engine.server_args_class"),),
    "phase spans": (
        Symbol(f"{_STATS}:RequestStageConfig", ("stage_name", "level")),
        Symbol(
            f"{_STATS}:ReqTimeStatsBase.trace_slice", ("stage", "start_time", "end_time", "attrs")
        ),
        Symbol("sglang.srt.managers.schedule_batch:Req.time_stats"),
        Symbol("sglang.srt.server_args:ServerArgs.enable_trace"),
    ),
    "requests": (
        Symbol("sglang.srt.sampling.sampling_params:SamplingParams.verify", ("vocab_size",)),
        Symbol("sglang.srt.sampling.sampling_params:SamplingParams.custom_params"),
        Symbol(
            "sglang.srt.managers.tokenizer_manager:TokenizerManager._validate_one_request",
            ("obj", "input_ids"),
        ),
        Symbol("sglang.srt.managers.io_struct:GenerateReqInput.return_hidden_states"),
    ),
    "batches": (
        Symbol(f"{_REQUEST}._handle_parallel_sampling", ("self",)),
        Symbol(f"{_REQUEST}._normalize_batch_inputs", ("self",)),
        Symbol(f"{_REQUEST}.__getitem__", ("i",)),
        *fields(
            _REQUEST,
            "audio_data",
            "batch_size",
            "image_data",
            "is_single",
            "mm_content_hashes",
            "mm_hashes",
            "video_config",
            "video_data",
        ),
    ),
    "chat parts": (
        *fields(
            f"{_PROTOCOL}:ChatCompletionMessageContentVideoPart",
            "type",
            "video_url",
            "model_rebuild",
        ),
        Symbol(f"{_PROTOCOL}:ChatCompletionMessageContentVideoURL.url"),
        Symbol(f"{_PROTOCOL}:ChatCompletionMessageGenericParam.content"),
        Symbol(f"{_PROTOCOL}:ChatCompletionMessageUserParam.content"),
        Symbol(f"{_PROTOCOL}:ChatCompletionRequest.messages"),
        Symbol(f"{_PROTOCOL}:TokenizeRequest.messages"),
    ),
    "responses": (
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
        Symbol(f"{_TOKENIZER}:ReqState.obj"),
    ),
    "frontend video": (
        Symbol(
            "sglang.srt.multimodal.processors.qwen_vl:QwenVLImageProcessor.process_mm_data_async",
            ("image_data", "input_text", "request_obj"),
        ),
        Symbol(
            "sglang.srt.multimodal.processors.base_processor:BaseMultimodalProcessor.load_mm_data",
            ("prompt", "multimodal_tokens", "image_data"),
        ),
        *fields("sglang.srt.managers.io_struct:GenerateReqInput", "image_data", "video_data"),
    ),
    # What `specvlm doctor` does before it looks at the other rooms.
    "doctor": (Symbol("sglang.srt.plugins:load_plugins"),),
    # Prompts of `specvlm bench`.
    "chat templates": (
        Symbol("sglang.srt.parser.conversation:get_conv_template_by_model_path", ("model_path",)),
        Symbol("sglang.srt.parser.conversation:generate_chat_conv", ("request", "template_name")),
        Symbol("sglang.srt.parser.conversation:Conversation.get_prompt", ("self",)),
        Symbol("sglang.srt.entrypoints.openai.protocol:ChatCompletionRequest"),
    ),
    "frontend programs": (
        Symbol("sglang.lang.interpreter:encode_video_base64", ("video_path", "num_frames")),
    ),
}
