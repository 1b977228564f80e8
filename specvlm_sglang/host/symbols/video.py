"""What decoding and encoding videos relies on, and our adapter of LLaVA-OneVision."""

from __future__ import annotations

from specvlm_sglang.host.symbol import Symbol, fields

_PROCESSOR = "sglang.srt.multimodal.processors.base_processor"
_QWEN = "sglang.srt.multimodal.processors.qwen_vl"

VIDEO: dict[str, tuple[Symbol, ...]] = {
    "video": (
        Symbol("sglang.srt.utils.video_decoder:VideoDecoderWrapper.__init__", ("source",)),
        Symbol("sglang.srt.utils.video_decoder:_BACKEND"),
        *fields(
            "sglang.srt.utils.video_decoder:VideoDecoderWrapper",
            "_decoder",
            "_num_decode_threads",
            "_source",
            "_source_bytes",
            "_source_path",
            "_tmp_path",
        ),
    ),
    "media sources": (
        Symbol("sglang.srt.utils.common:_normalize_video_input", ("video_file",)),
        Symbol("sglang.srt.utils.common:load_image", ("image_file", "gpu_image_decode")),
        Symbol("sglang.srt.utils.common:get_image_bytes", ("image_file",)),
        Symbol("sglang.srt.utils.common:get_mm_http_session", ()),
        Symbol("sglang.srt.utils.common:download_remote_media", ("url", "timeout")),
        Symbol("sglang.srt.utils.common:configure_media_url_security"),
        Symbol("sglang.srt.utils.common:CLIENT_MEDIA_EXCEPTIONS"),
    ),
    "media errors": (
        Symbol(f"{_PROCESSOR}:BaseMultimodalProcessor._load_single_item", ("data", "modality")),
    ),
    "video resizing": (
        Symbol(
            "sglang.srt.multimodal.processors.qwen_vl:smart_nframes",
            ("ele", "total_frames", "video_fps"),
        ),
        Symbol("sglang.srt.multimodal.processors.qwen_vl:preprocess_video", ("vr",)),
        Symbol(
            "sglang.srt.utils.video_decoder:VideoDecoderWrapper.get_frames_as_tensor",
            ("indices",),
        ),
        Symbol("sglang.srt.utils.video_decoder:VideoDecoderWrapper.avg_fps"),
        Symbol("sglang.srt.utils.common:is_cpu", ()),
    ),
    "frame lists": (
        Symbol("sglang.srt.utils.common:load_video", ("video_file", "use_gpu")),
        Symbol("sglang.srt.utils.common:load_image", ("image_file", "gpu_image_decode")),
        *fields(
            "sglang.srt.utils.video_decoder:VideoDecoderWrapper",
            "avg_fps",
            "close",
            "get_frames_as_tensor",
            "get_frames_at",
        ),
    ),
    "processors": (
        Symbol(
            "sglang.srt.managers.multimodal_processor:get_mm_processor", ("hf_config", "processor")
        ),
        Symbol(f"{_PROCESSOR}:BaseMultimodalProcessor.hf_config"),
        Symbol(f"{_PROCESSOR}:BaseMultimodalProcessor.video_config"),
    ),
    "qwen requests": (
        Symbol(f"{_QWEN}:preprocess_video", ("vr", "video_config")),
        Symbol(f"{_QWEN}:smart_nframes", ("ele", "total_frames", "video_fps")),
        Symbol(
            f"{_QWEN}:QwenVLImageProcessor._process_mm_data_uncached",
            ("image_data", "input_text", "request_obj"),
        ),
        Symbol(
            f"{_QWEN}:QwenVLImageProcessor.process_and_combine_mm_data_async",
            ("base_output", "mm_tokens"),
        ),
        Symbol(
            f"{_PROCESSOR}:BaseMultimodalProcessor.process_mm_data", ("processor_video_config",)
        ),
        Symbol(f"{_PROCESSOR}:BaseMultimodalProcessor._processor"),
        Symbol("sglang.srt.managers.io_struct:GenerateReqInput.mm_processor_kwargs"),
        Symbol("sglang.srt.managers.io_struct:GenerateReqInput.video_config"),
        Symbol(f"{_QWEN}:VIDEO_TOTAL_PIXELS"),
    ),
    "exact vision": (
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
    "pixels": (
        Symbol(
            "sglang.srt.managers.mm_schedule:_move_items_to_device",
            ("items", "device", "data_embedding_func"),
        ),
        Symbol("sglang.srt.managers.schedule_batch:MultimodalDataItem.feature"),
    ),
    "llava onevision tables": (
        Symbol("sglang.srt.configs.model_config:multimodal_model_archs"),
        Symbol("sglang.srt.models.registry:ModelRegistry.models"),
        Symbol("sglang.srt.managers.multimodal_processor:PROCESSOR_MAPPING"),
    ),
    "llava onevision": (
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
        Symbol("sglang.srt.model_loader.weight_utils:default_weight_loader", ("param",)),
        Symbol("sglang.srt.utils:add_prefix", ("name", "prefix")),
    ),
    "llava onevision processor": (
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
        Symbol(f"{_PROCESSOR}:MultimodalSpecialTokens"),
        Symbol("sglang.srt.managers.schedule_batch:Modality.VIDEO"),
        Symbol("sglang.srt.managers.schedule_batch:MultimodalDataItem.offsets"),
        Symbol("sglang.srt.managers.schedule_batch:MultimodalProcessorOutput"),
        Symbol("sglang.srt.managers.mm_utils:hash_feature", ("f",)),
        Symbol(
            "sglang.srt.utils.video_decoder:VideoDecoderWrapper.get_frames_as_tensor",
            ("indices",),
        ),
    ),
    "llava onevision chat": (
        Symbol(
            "sglang.srt.parser.template_manager:TemplateManager.guess_chat_template_from_model_path",
            ("model_path",),
        ),
    ),
}
