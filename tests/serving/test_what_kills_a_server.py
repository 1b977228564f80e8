"""Requests that end a server, or are never answered, without what keeps it up.

One server of the other SPECVLM tests; after each request it must answer as before.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import requests

from specvlm_sglang.tools import client
from tests.serving.specvlm import CHAIN, chat_prompt, launch
from tests.support import checkpoints, hf
from tests.support.clips import data_url
from tests.support.server import Server

pytestmark = pytest.mark.serving

SECONDS = 60
LONGEST_MESSAGE = 500
QUESTION = chat_prompt("Which colours are there?")
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE_PAD, VIDEO_PAD = "<|image_pad|>", "<|video_pad|>"
IMAGE = f"{VISION_START}{IMAGE_PAD}{VISION_END}"
VIDEO = f"{VISION_START}{VIDEO_PAD}{VISION_END}"
GREEDY = {"max_new_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def server(serve: Any, vl_target: Path, vl_draft: Path) -> Server:
    started: Server = serve(vl_target, *launch(vl_draft, *CHAIN))
    return started


@pytest.fixture(scope="module")
def answer(server: Server) -> list[int]:
    return list(server.generate(QUESTION, max_new_tokens=8)["output_ids"])


@pytest.fixture(autouse=True)
def the_server_goes_on(server: Server, answer: list[int]) -> Any:
    yield
    assert server.generate(QUESTION, max_new_tokens=8)["output_ids"] == answer


def post(server: Server, path: str, body: Any = None) -> requests.Response:
    return requests.post(server.url + path, json=body, timeout=SECONDS)


def refuse(server: Server, path: str, body: Any) -> str:
    """The text of a 400."""
    response = post(server, path, body)
    assert response.status_code == 400, response.text[:2000]
    assert len(response.text) < LONGEST_MESSAGE + 100
    return response.text


@pytest.mark.parametrize("activities", [None, ["CPU"], ["CPU", "GPU"]])
def test_the_profiler_starts_and_stops(
    server: Server, activities: list[str] | None, tmp_path: Path
) -> None:
    wanted = {"output_dir": str(tmp_path), "activities": activities, "with_stack": False}
    assert post(server, "/start_profile", wanted).ok
    assert "in progress" in refuse(server, "/start_profile", wanted)
    assert post(server, "/stop_profile").ok
    assert list(tmp_path.glob("*.trace.json.gz"))
    assert "not in progress" in refuse(server, "/stop_profile", None)


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("/start_profile", {"activities": ["FOO"]}, "activities"),
        ("/start_profile", {"profile_by_stage": True}, "num_steps"),
        ("/resume_memory_occupation", {}, "not released"),
        ("/release_memory_occupation", {"tags": ["disk"]}, "tags"),
        ("/update_weights_from_disk", {"model_path": "/nowhere"}, "no such directory"),
        ("/update_weights_from_disk", {"model_path": ""}, "model_path is empty"),
        ("/begin_weight_update", {"selector": "draft"}, "selector"),
        ("/end_weight_update", {}, "begin_weight_update"),
        ("/update_weights_from_tensor", {"serialized_named_tensors": ["AAAA"]}, "begin_weight"),
        (
            "/init_weights_update_group",
            {
                "master_address": "127.0.0.1",
                "master_port": 1,
                "rank_offset": 3,
                "world_size": 2,
                "backend": "gloo",
            },
            "rank_offset",
        ),
        ("/send_weights_to_remote_instance", {"master_address": "", "ports": "1"}, "weight_send"),
        ("/start_expert_distribution_record", None, "expert_distribution_recorder_mode"),
        ("/slow_down", {"forward_sleep_time": "nan"}, "forward_sleep_time"),
        (
            "/set_internal_state",
            {"server_args": {"speculative_accept_threshold_acc": 0.1}},
            "answers would not be the target's",
        ),
        ("/set_internal_state", {"server_args": {"pp_max_micro_batch_size": "nan"}}, "finite"),
        ("/generate", {"input_ids": [5, -1]}, "input_ids[1]"),
        ("/generate", {"input_ids": [5, 10**9]}, "input_ids[1]"),
        ("/generate", {"text": ""}, "empty"),
        ("/generate", {"text": "", "video_data": "a.mp4"}, "empty"),
        ("/generate", {"text": "", "video_data": "a.mp4", "rid": {"a": []}}, "rid"),
        (
            "/generate",
            {"text": "a", "return_logprob": True, "top_logprobs_num": 10**6},
            "top_logprobs_num",
        ),
        ("/generate", {"text": "a", "positional_embed_overrides": {"a": 1}}, "positional_embed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_done_is_a_400_that_names_it(
    server: Server, path: str, body: Any, says: str
) -> None:
    assert says in refuse(server, path, body)


def test_another_shape_is_refused_and_the_same_weights_are_loaded(
    server: Server, vl_target: Path, vl_draft: Path
) -> None:
    said = refuse(server, "/update_weights_from_disk", {"model_path": str(vl_draft)})
    assert '"success":false' in said
    assert "is served" in said
    assert post(server, "/update_weights_from_disk", {"model_path": str(vl_target)}).json()[
        "success"
    ]


def test_other_weights_of_the_same_shape_are_answered_with_until_the_first_return(
    server: Server, vl_target: Path, answer: list[int], tmp_path: Path
) -> None:
    """The draft keeps its own: it drafts for another target now, whose answers are right."""
    other = checkpoints.qwen2_5_vl(tmp_path / "other", seed=7)
    prompt = {"model": "default", "prompt": QUESTION}
    ids = post(server, "/v1/tokenize", prompt).json()["tokens"]
    expected = hf.greedy(other, ids, 8).output_ids
    assert expected != answer
    assert post(server, "/update_weights_from_disk", {"model_path": str(other)}).json()["success"]
    found = server.generate(QUESTION, max_new_tokens=8)
    assert found["output_ids"] == expected
    assert found["meta_info"]["specvlm"]["cold"] is None
    restored = post(server, "/update_weights_from_disk", {"model_path": str(vl_target)})
    assert restored.json()["success"]


def test_a_checkpoint_that_was_cut_leaves_the_served_weights(
    server: Server, vl_target: Path, tmp_path: Path
) -> None:
    broken = checkpoints.cut(vl_target, tmp_path / "cut")
    said = refuse(server, "/update_weights_from_disk", {"model_path": str(broken)})
    assert '"success":false' in said
    assert str(broken) in said


def test_memory_is_not_released_under_a_streaming_answer(
    server: Server, clip_paths: list[Path]
) -> None:
    chunks = server.stream(
        chat_prompt("What happens?", video=True),
        video_data=[str(clip_paths[0])],
        sampling_params={"max_new_tokens": 64, "temperature": 0, "ignore_eos": True},
    )
    next(chunks)
    refuse(server, "/release_memory_occupation", {})
    assert [chunk["meta_info"]["finish_reason"] for chunk in chunks][-1]["type"] == "length"


def test_placeholders_without_a_picture_are_a_400_within_seconds(
    server: Server, image_paths: list[Path]
) -> None:
    picture = {"type": "image_url", "image_url": {"url": data_url(image_paths[0])}}
    said = {"type": "text", "text": f"What does {IMAGE_PAD} mean?"}
    message = {"role": "user", "content": [picture, said]}
    chat = {"model": "default", "messages": [message], "max_tokens": 4}
    assert "placeholders" in refuse(server, "/v1/chat/completions", chat)


def test_expanded_placeholders_of_token_ids_are_a_400_within_seconds(
    server: Server, image_paths: list[Path]
) -> None:
    prompt = f"{VISION_START}{IMAGE_PAD * 9}{VISION_END}What?"
    ids = post(server, "/v1/tokenize", {"model": "default", "prompt": prompt}).json()["tokens"]
    body = {"input_ids": ids, "image_data": [str(image_paths[0])], "sampling_params": GREEDY}
    assert "placeholders" in refuse(server, "/generate", body)


def test_the_word_image_beside_a_video_is_a_word(server: Server, clip_paths: list[Path]) -> None:
    body = {
        "text": f"{VIDEO}What does <image> mean?",
        "video_data": [str(clip_paths[0])],
        "sampling_params": GREEDY,
    }
    response = post(server, "/generate", body)
    assert response.ok, response.text
    body["text"] = f"{VIDEO}What does {IMAGE} mean?"
    assert "placeholder" in refuse(server, "/generate", body)


def test_what_was_sent_is_not_sent_back(server: Server, image_paths: list[Path]) -> None:
    url = data_url(image_paths[0]) * 20
    parts = [
        {"type": "video_url", "video_url": {"url": url}},
        {"type": "nonsense", "nonsense": url},
    ]
    chat = {"model": "default", "messages": [{"role": "user", "content": parts}]}
    assert url[:300] not in refuse(server, "/v1/chat/completions", chat)
    body = {"text": VIDEO, "video_data": [url], "sampling_params": GREEDY, "stream": True}
    assert len(post(server, "/generate", body).text) < LONGEST_MESSAGE + 200


def test_others_are_answered_while_requests_are_refused(server: Server) -> None:
    found: list[Any] = []
    asking = threading.Thread(
        target=lambda: found.append(server.generate(QUESTION, max_new_tokens=48, ignore_eos=True))
    )
    asking.start()
    for _ in range(3):
        refuse(server, "/generate", {"input_ids": [-1], "sampling_params": GREEDY})
        refuse(server, "/resume_memory_occupation", {})
    asking.join()
    assert len(found[0]["output_ids"]) == 48
    assert client.specvlm_state(server.url)["draft_kv_tokens_in_use"] == 0
