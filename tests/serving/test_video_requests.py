"""Videos in requests to a real server: options, lists of frames, receipts, counts."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
from PIL import Image

from tests.serving.specvlm import CHAIN, chat_prompt, launch, report
from tests.support import clips
from tests.support.frames import write_lossless, write_pictures
from tests.support.messages import user
from tests.support.server import ChatAnswer, Server

pytestmark = pytest.mark.serving

LONGEST_MESSAGE = 500
QUESTION = "What happens?"
FRAMES = 6


@pytest.fixture
def server(serve: Any, vl_target: Path, vl_draft: Path) -> Server:
    found: Server = serve(vl_target, *launch(vl_draft, *CHAIN))
    return found


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty frames, ten a second."""
    path = tmp_path_factory.mktemp("requests") / "clip.mp4"
    return clips.write_clip(path, frames=40, fps=10)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    frames = clips.draw(seed=5, frames=FRAMES, height=90, width=120)
    return write_pictures(tmp_path_factory.mktemp("listed") / "frames", frames)


@pytest.fixture(scope="module")
def same_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that decodes to `pictures`, four a second."""
    frames = clips.draw(seed=5, frames=FRAMES, height=90, width=120)
    return write_lossless(tmp_path_factory.mktemp("filed") / "clip.mkv", frames, fps=4)


def about(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}]


def beside_url(path: Path | str, **options: Any) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": str(path), **options}}


def ask(server: Server, messages: list[dict[str, Any]], **fields: Any) -> ChatAnswer:
    return server.chat(messages, max_tokens=8, return_meta_info=True, **fields)


def videos(answer: ChatAnswer) -> list[dict[str, Any]]:
    """The receipts, whose tokens are the prompt's."""
    found: list[dict[str, Any]] = report(answer)["videos"]
    assert sum(video["tokens"] for video in found) == report(answer)["video_tokens"]
    return found


def refuse(server: Server, messages: list[dict[str, Any]], **fields: Any) -> str:
    with pytest.raises(openai.BadRequestError) as refused:
        ask(server, messages, **fields)
    message: str = refused.value.body["message"]  # type: ignore[index,call-overload]
    assert len(message) < LONGEST_MESSAGE
    return message


def refuse_native(server: Server, body: dict[str, Any]) -> str:
    answer = requests.post(f"{server.url}/generate", json=body, timeout=60)
    assert answer.status_code == 400, answer.text
    assert len(answer.text) < LONGEST_MESSAGE
    return answer.text


def test_options_decide_frames_and_tokens_and_the_receipt_says_so(
    server: Server, clip: Path
) -> None:
    plain = about(beside_url(clip))
    (default,) = videos(ask(server, plain))
    assert (default["frames"], default["frames_used"], default["duration"]) == (40, 8, 4.0)
    assert len(default["times"]) == 8
    for answer in (
        ask(server, about(beside_url(clip, nframes=4))),
        ask(server, plain, video_config={"nframes": 4}),
        ask(server, plain, mm_processor_kwargs={"nframes": 4}, video_config={"max_frames": 30}),
        ask(server, about(beside_url(clip, fps=1)), video_config={"nframes": 20}),
        ask(server, about({"type": "video", "video": str(clip), "max_frames": 5})),
    ):
        (found,) = videos(answer)
        assert (found["frames_used"], found["tokens"]) == (4, default["tokens"] // 2)
        assert found["times"] == [0, 1.3, 2.6, 3.9]
    (large,) = videos(ask(server, about(beside_url(clip, min_pixels=30_000))))
    assert large["height"] * large["width"] >= 30_000 > default["height"] * default["width"]
    two = about(beside_url(clip, nframes=2), beside_url(clip))
    assert [video["frames_used"] for video in videos(ask(server, two))] == [2, 8]


def test_options_that_cannot_be_kept_are_a_400_that_names_them(server: Server, clip: Path) -> None:
    for part, says in (
        (beside_url(clip, fps=-1), "fps=-1 must be a number above 0"),
        (beside_url(clip, nframes=10**9), "nframes=1000000000 must be an integer from 1 to"),
        (beside_url(clip, fps=1, nframes=4), "fps=1 and nframes=4 exclude each other"),
        (beside_url(clip, detail="low"), "no field 'detail'; it takes"),
        (beside_url(clip, min_pixels=9000, max_pixels=8000), "min_pixels=9000 must be at most"),
        ({**beside_url(clip), "fps": 1}, "fps stands beside video_url"),
        ({"type": "video", "video": [{"url": "x" * 80_000}]}, "frame 0 of a list"),
        ({"type": "video"}, "must be an address or a list of frames"),
    ):
        assert says in refuse(server, about(part))
    plain = about(beside_url(clip))
    assert "video_config: max_frames='9' must" in refuse(
        server, plain, video_config={"max_frames": "9"}
    )
    assert "mm_processor_kwargs has no field 'max_pixel'" in refuse(
        server, plain, mm_processor_kwargs={"max_pixel": 9}
    )
    assert videos(ask(server, plain))


def test_a_list_of_frames_is_answered_as_the_file_of_the_same_pixels(
    server: Server, pictures: list[str], same_file: Path
) -> None:
    filed = ask(server, about(beside_url(same_file, fps=4)))
    listed = ask(server, about({"type": "video", "video": pictures, "fps": 4}))
    timed = ask(
        server,
        about({"type": "video", "video": pictures, "times": [i / 4 for i in range(FRAMES)]}),
    )
    assert listed.output_ids == timed.output_ids == filed.output_ids
    assert listed.prompt_ids == filed.prompt_ids
    (of_file,), (of_list,) = videos(filed), videos(listed)
    assert of_list["container"] == "frames"
    for name in ("frames", "frames_used", "times", "height", "width", "tokens"):
        assert of_list[name] == of_file[name]
    inline = [clips.data_url(Path(picture)) for picture in pictures]
    assert ask(server, about({"type": "video", "video": inline, "fps": 4})).output_ids == (
        filed.output_ids
    )


def test_every_form_of_a_list_is_the_same_video(server: Server, pictures: list[str]) -> None:
    bodies = []
    for picture in pictures:
        file = io.BytesIO()
        Image.open(picture).save(file, "JPEG")
        bodies.append(base64.b64encode(file.getvalue()).decode())
    url = f"data:video/jpeg;base64,{','.join(bodies)}"
    wanted = ask(server, about({"type": "video", "video": bodies, "fps": 2}))
    assert ask(server, about(beside_url(url))).output_ids == wanted.output_ids
    prompt = chat_prompt(QUESTION, video=True)
    answers = []
    for data in ([bodies], [url], [{"url": url, "fps": 2}], {"url": url}):
        answers.append(server.generate(prompt, max_new_tokens=8, request={"video_data": data}))
        (found,) = answers[-1]["meta_info"]["specvlm"]["videos"]
        assert (found["frames"], found["duration"]) == (FRAMES, 3.0)
    assert all(answer["output_ids"] == answers[0]["output_ids"] for answer in answers)


def test_frames_that_cannot_be_used_are_a_400(
    server: Server, pictures: list[str], image_paths: list[Path]
) -> None:
    for frames, says in (
        ([*pictures, str(image_paths[0])], "the frames of a video have one size"),
        ([*pictures, "/nowhere.png"], f"frame {FRAMES} of the list: the server finds no such file"),
        (pictures[:1], "needs 2"),
        ([], "a list of frames is empty"),
        (pictures * 200, "at most 768 are taken"),
        (["A" * 80_000] * 2, "frame 0 of the list"),
    ):
        assert says in refuse(server, about({"type": "video", "video": frames}))


def test_several_answers_about_two_videos_or_images(
    server: Server, clip_paths: list[Path], image_paths: list[Path]
) -> None:
    for files in (clip_paths[:2], image_paths[:2]):
        messages = user(*files, "Compare them.")
        single = ask(server, messages)
        several = ask(server, messages, n=2)
        texts = [choice["message"]["content"] for choice in several.raw["choices"]]
        assert texts == [single.text] * 2
    receipts = [choice["meta_info"]["specvlm"].get("videos") for choice in several.raw["choices"]]
    assert receipts == [None, None]
    several = ask(server, user(*clip_paths[:2], "Compare them."), n=2, video_config={"nframes": 2})
    for choice in several.raw["choices"]:
        used = [video["frames_used"] for video in choice["meta_info"]["specvlm"]["videos"]]
        assert used == [2, 2]


def test_a_batch_needs_an_entry_for_each_prompt(
    server: Server, clip_paths: list[Path], image_paths: list[Path]
) -> None:
    first, second, third = (str(path) for path in clip_paths[:3])
    prompt = chat_prompt(QUESTION, video=True)
    sampling = {"temperature": 0, "max_new_tokens": 8}
    body = {"text": [prompt, prompt], "sampling_params": sampling}
    for wrong in ([first], [first, second, third]):
        said = f"video_data has {len(wrong)} entries for 2 prompts"
        assert said in refuse_native(server, {**body, "video_data": wrong})
    images = [str(path) for path in image_paths[:3]]
    said = "image_data has 3 entries for 2 prompts"
    assert said in refuse_native(server, {**body, "image_data": images})
    right = {**body, "video_data": [[first], [second]], "video_config": {"nframes": 2}}
    answers = requests.post(f"{server.url}/generate", json=right, timeout=60).json()
    for path, answer in zip((first, second), answers, strict=True):
        alone = server.generate(
            prompt,
            max_new_tokens=8,
            request={"video_data": path, "video_config": {"nframes": 2}},
        )
        assert answer["output_ids"] == alone["output_ids"]
        assert answer["meta_info"]["specvlm"]["videos"][0]["frames_used"] == 2


def test_a_stream_has_the_receipts_in_its_last_chunk(server: Server, clip: Path) -> None:
    sampling = {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True}
    chunks = list(
        server.stream(
            chat_prompt(QUESTION, video=True), video_data=[str(clip)], sampling_params=sampling
        )
    )
    assert len(chunks) > 1
    *before, last = (chunk["meta_info"]["specvlm"] for chunk in chunks)
    assert all("videos" not in shown for shown in before)
    assert last["videos"][0]["tokens"] == last["video_tokens"]
