"""An SGLang frontend program that asks about a clip.

python examples/frontend_video.py --video clip.mp4 [--url http://127.0.0.1:30000] [--api-key KEY]
"""

from __future__ import annotations

import argparse
import os
import sys

import sglang as sgl
from sglang.lang.chat_template import get_chat_template

from specvlm_sglang.frontend import enable_video


@sgl.function
def ask_about(s, path: str, frames: int, question: str):
    """One user turn with a video, one answer."""
    s += sgl.user(sgl.video(path, frames) + question)
    s += sgl.assistant(sgl.gen("answer", max_tokens=64, temperature=0))


def main() -> None:
    """Ask and print the answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:30000")
    parser.add_argument(
        "--api-key", default=os.environ.get("OPENAI_API_KEY"), help="of that server"
    )
    parser.add_argument("--video", required=True)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--question", default="What happens in the video?")
    options = parser.parse_args()
    enable_video()
    try:
        backend = sgl.RuntimeEndpoint(options.url, api_key=options.api_key)
    except RuntimeError as refusal:
        sys.exit(f"the server answers {refusal}; its key goes into --api-key or OPENAI_API_KEY")
    backend.chat_template = get_chat_template("qwen2-vl")
    state = ask_about.run(options.video, options.frames, options.question, backend=backend)
    print(state["answer"])


if __name__ == "__main__":
    main()
