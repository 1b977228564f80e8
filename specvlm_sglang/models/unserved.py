"""Models that people ask for and that cannot be served, each with the reason.

Read in SGLang 0.5.23's own classes and processors; none was run.
"""

from __future__ import annotations

_HYBRID = (
    "most of its layers are recurrent, and SGLang cannot take back in such a draft what the target "
    "rejects. Its own MTP head drafts for it: --speculative-algorithm NEXTN"
)
_RECURRENT = (
    "most of its layers are recurrent, and SGLang cannot take back in such a draft what the target "
    "rejects"
)
_NO_VIDEO = "SGLang 0.5.23 takes images alone for it, and ignores or refuses a video"
_LATENT = f"{_NO_VIDEO}; its KV cache holds latents, not the keys that a video is scored by"
_WINDOWS = (
    "five of six layers see a window of the prompt, and its last layers share keys with others"
)
_BROKEN_FRAMES = (
    "SGLang 0.5.23 fails on its videos: it calls asnumpy() on frames that are NumPy arrays"
)
_OWN_FORWARD = (
    "SGLang's class takes the frames of a video as images and embeds them on a way of its own"
)
_NO_CLASS = "SGLang 0.5.23 has no class for it, and its fallback on transformers reads no videos"

REASONS: dict[str, str] = {
    **dict.fromkeys(
        (
            "Qwen3_5ForConditionalGeneration",
            "Qwen3_5MoeForConditionalGeneration",
            "Qwen4ExpForConditionalGeneration",
            "InternS2PreviewForConditionalGeneration",
            "InternS2MobiusForConditionalGeneration",
        ),
        _HYBRID,
    ),
    **dict.fromkeys(
        (
            "MiniCPMV4_6ForConditionalGeneration",
            "MiniCPMV4_7ForConditionalGeneration",
            "NemotronH_Nano_VL_V2",
            "JetVLMForConditionalGeneration",
        ),
        _RECURRENT,
    ),
    **dict.fromkeys(
        (
            "MiniCPMV",
            "MiniCPMO",
            "Gemma3ForConditionalGeneration",
            "Gemma3nForConditionalGeneration",
            "Step3VLForConditionalGeneration",
            "StepVLForConditionalGeneration",
        ),
        _NO_VIDEO,
    ),
    "KimiVLForConditionalGeneration": _LATENT,
    "KimiK25ForConditionalGeneration": _LATENT,
    "Gemma4ForConditionalGeneration": (
        f"{_WINDOWS}. SGLang drafts for it with Gemma's own assistant models"
    ),
    "Step3p7ForConditionalGeneration": f"{_NO_VIDEO}; as a draft SGLang makes an MTP head of it",
    "NVILAForConditionalGeneration": _BROKEN_FRAMES,
    "NVILALiteForConditionalGeneration": _BROKEN_FRAMES,
    "InternS1ForConditionalGeneration": (
        "SGLang 0.5.23 has no encoder of videos for it, and a video ends its scheduler"
    ),
    "InternS1ProForConditionalGeneration": "it comes in one size, so that nothing can draft for it",
    "Ernie4_5_VLMoeForConditionalGeneration": (
        "its experts are chosen by the kind of each token, which a pruned draft prompt does not say"
    ),
    "Glm46VForConditionalGeneration": _NO_CLASS,
    "KeyeForConditionalGeneration": _NO_CLASS,
    "KeyeVL1_5ForConditionalGeneration": _NO_CLASS,
    "LLaVAOneVision1_5_ForConditionalGeneration": _NO_CLASS,
    "VideoLLaMA3ForConditionalGeneration": _NO_CLASS,
    "Videollama3Qwen2ForCausalLM": _NO_CLASS,
    "InternVLForConditionalGeneration": (
        "SGLang 0.5.23 serves OpenGVLab's own form of these checkpoints alone (InternVLChatModel): "
        "take the one whose name does not end with -HF"
    ),
    "LlavaVidForCausalLM": _OWN_FORWARD,
    "LlavaLlamaForCausalLM": _OWN_FORWARD,
    "LlavaMistralForCausalLM": _OWN_FORWARD,
    "LlavaForConditionalGeneration": _NO_VIDEO,
}
"""Why, by the name in ``config.architectures``; follows "SPECVLM does not serve it: "."""
