"""Ask a SPECVLM server about a clip through the OpenAI client, streaming.

python examples/openai_client.py --video clip.mp4 [--url http://127.0.0.1:30000] [--api-key KEY]
"""

from __future__ import annotations

import argparse
import base64
import os
import sys
from pathlib import Path

import openai


def main() -> None:
    """Stream the answer, then print what the draft kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:30000")
    parser.add_argument(
        "--api-key", default=os.environ.get("OPENAI_API_KEY", "none"), help="of that server"
    )
    parser.add_argument("--video", required=True)
    parser.add_argument("--question", default="What happens in the video?")
    parser.add_argument("--retention", type=float, default=0.1)
    options = parser.parse_args()
    encoded = base64.b64encode(Path(options.video).read_bytes()).decode()
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{encoded}"}},
                {"type": "text", "text": options.question},
            ],
        }
    ]
    client = openai.OpenAI(base_url=f"{options.url}/v1", api_key=options.api_key)
    request = {
        "model": "default",
        "messages": messages,
        "max_tokens": 64,
        "temperature": 0,
    }
    chosen = {"custom_params": {"specvlm": {"retention": options.retention}}}
    for chunk in client.chat.completions.create(**request, extra_body=chosen, stream=True):
        if chunk.choices:
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()
    # SGLang sends meta_info with answers that are not streamed.
    answer = client.chat.completions.create(
        **request, extra_body={**chosen, "return_meta_info": True}
    )
    print(answer.choices[0].model_extra["meta_info"]["specvlm"])


if __name__ == "__main__":
    try:
        main()
    except openai.AuthenticationError:
        sys.exit("the server wants another key: --api-key or OPENAI_API_KEY")
