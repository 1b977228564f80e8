"""SPECVLM without a server: `sglang.Engine` in this process, settings as its keywords.

    python examples/engine.py --target MODEL --draft SMALL_MODEL --video clip.mp4

Prints the answer, what the draft kept, and how many tokens each verify round emitted.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def main() -> None:
    """Ask one question about one video."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", required=True)
    parser.add_argument("--draft", required=True)
    parser.add_argument("--video", type=Path, required=True)
    parser.add_argument("--question", default="What happens in the video?")
    parser.add_argument("--retention", type=float, default=0.1, help="share of video tokens kept")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()

    import sglang
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(options.target)
    question = [{"type": "video"}, {"type": "text", "text": options.question}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
    )
    engine = sglang.Engine(
        model_path=options.target,
        speculative_algorithm="SPECVLM",
        speculative_draft_model_path=options.draft,
        specvlm_retention=options.retention,
        dtype=options.dtype,
        log_level="warning",
    )
    try:
        answer = engine.generate(
            prompt,
            video_data=[str(options.video)],
            sampling_params={"temperature": 0, "max_new_tokens": options.max_tokens},
        )
    finally:
        engine.shutdown()
    meta = answer["meta_info"]
    report = meta["specvlm"]
    print(answer["text"])
    print(
        f"kept {report['kept_video_tokens']} of {report['video_tokens']} video tokens; "
        f"{meta['completion_tokens']} tokens in {meta['spec_verify_ct']} verify rounds"
    )


if __name__ == "__main__":
    main()
