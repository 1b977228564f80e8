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
    "vision",
    (
        Symbol(
            "sglang.srt.layers.attention.vision:VisionSdpaAttention.forward",
            ("q", "k", "v", "bsz", "cu_seqlens", "attention_mask"),
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
        Symbol(
            "sglang.srt.models.qwen2_5_vl:Qwen2_5_VisionTransformer.forward", ("x", "grid_thw")
        ),
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
