"""`specvlm doctor --video-tokens`: figures of published pairs, each with how it was computed."""

from __future__ import annotations

import re

import pytest

from specvlm_sglang.tools import cli, demo

PAIR = ("--target", "Qwen/Qwen2.5-VL-32B-Instruct", "--draft", "Qwen/Qwen2.5-VL-7B-Instruct")
NAMES = (
    "target",
    "draft",
    "weights",
    "target KV",
    "draft KV",
    "scoring",
    "vision tower's peak",
    "draft's features",
    "for KV caches",
    "room left",
    "largest batch",
    "decoding, 1 request",
    "end to end, 1 request",
    "decoding, 23 requests",
    "end to end, 23 requests",
)


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = cli.main(["doctor", *arguments])
    said = capsys.readouterr()
    return status, said.out + said.err


def figures(text: str) -> dict[str, tuple[str, str]]:
    """Value and explanation of each figure, by its name."""
    lines = text.splitlines()[:-1]
    found = {}
    for value, how in zip(lines[::2], lines[1::2], strict=True):
        name = re.split(r"  +", value)[0]
        assert how.startswith("  "), how
        found[name] = (value.removeprefix(name).strip(), how.strip())
    return found


def test_a_published_pair_is_sized_without_its_weights(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = doctor(
        capsys, *PAIR, "--tp", "4", "--gpu-memory", "80", "--video-tokens", "25000"
    )
    assert status == 0, text
    found = figures(text)
    assert tuple(found) == NAMES
    assert all(len(how) > 15 for _, how in found.values())
    assert found["weights"][0] == "target 15.58 GiB, draft 3.86 GiB a GPU"
    assert found["target KV"][0].startswith("64.0 KiB a token, 1.56 GiB a request")
    assert found["largest batch"][0].startswith("23 requests at once")
    for name in ("decoding, 1 request", "end to end, 1 request"):
        gains = [float(gain) for gain in re.findall(r"tokens ([\d.]+)x", found[name][0])]
        assert len(gains) == 5
    # The longer the answer, the less the start of the draft weighs.
    assert gains == sorted(gains)
    assert 1 < gains[0] < gains[-1] < 4
    assert text.endswith("Fits.\n")


def test_the_shipped_pair_is_sized_by_its_files(capsys: pytest.CaptureFixture[str]) -> None:
    models = ("--target", str(demo.target_path()), "--draft", str(demo.draft_path()))
    status, text = doctor(capsys, *models, "--video-tokens", "2048", "--gpu", "L40S")
    assert status == 0, text
    found = figures(text)
    assert "weight files" in found["target"][1]
    assert found["weights"][0].startswith("target 7.95 MiB, draft 1.14 MiB")
    assert found["for KV caches"][1].startswith("48 GiB x ")


def test_a_pair_that_does_not_fit_is_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    status, text = doctor(capsys, *PAIR, "--gpu-memory", "48", "--video-tokens", "25000")
    assert status == 1
    assert text.endswith("Does not fit: more GPUs (--tp), or a smaller pair.\n")


def test_an_accept_length_raises_the_gain_in_proportion(capsys: pytest.CaptureFixture[str]) -> None:
    gains = {}
    for length in ("2", "4"):
        more = ("--tp", "4", "--video-tokens", "8000", "--accept-length", length)
        value, how = figures(doctor(capsys, *PAIR, *more)[1])["decoding, 1 request"]
        gains[length] = float(re.findall(r"256 tokens ([\d.]+)x", value)[0])
        assert f"an accept length of {length} assumed" in how
    assert gains["4"] == pytest.approx(2 * gains["2"], abs=0.02)


def test_a_target_without_a_draft_is_told_where_drafting_for_itself_pays(
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, text = doctor(capsys, *PAIR[:2], "--tp", "2", "--video-tokens", "25000")
    assert status == 0, text
    found = figures(text)
    assert tuple(found) == (
        *(name for name in NAMES[:11] if not name.startswith("draft")),
        "for itself, 1 request",
        "for itself, 9 requests",
        "pays",
    )
    assert found["largest batch"][0].startswith("9 requests at once")
    alone, together = (found[f"for itself, {batch}"] for batch in ("1 request", "9 requests"))
    # By hand, at the middle of an answer of 512 tokens: 2 bytes for each of the weights but the
    # embedding's and the vision tower's, 256 KiB for each of 25,320 tokens. A round is 3 steps that
    # read 2,820 of these tokens, and one that reads all.
    weights = 2 * 31.98e9
    for value, batch in ((alone[0], 1), (together[0], 9)):
        whole, kept = (weights + batch * tokens * 2**18 for tokens in (25_320, 2_820))
        least = (3 * kept + whole) / whole
        said = [float(number) for number in re.findall(r"[\d.]+", value)]
        assert said == pytest.approx([3 / least, 4 / least, least], rel=0.02)
    assert found["pays"][0] == "from 6 requests at once on"


def test_a_target_whose_weights_outweigh_its_videos_is_told_to_serve_plainly(
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = ("--tp", "2", "--video-tokens", "500", "--batch", "48")
    found = figures(doctor(capsys, *PAIR[:2], *more)[1])
    gain, most = re.findall(r"([\d.]+)x", found["for itself, 48 requests"][0])
    assert float(gain) < 1 < float(most) < 1.2
    assert found["pays"][0] == "at no batch up to 48: serve plainly, or name a draft model"


def test_layers_that_draft_make_a_draft_step_cheaper(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    more = (*PAIR[:2], "--tp", "2", "--video-tokens", "25000", "--batch", "1")
    whole = figures(doctor(capsys, *more)[1])["for itself, 1 request"]
    monkeypatch.setenv("SPECVLM_SELF_LAYERS", "32")
    value, how = figures(doctor(capsys, *more)[1])["for itself, 1 request"]
    assert "a draft step of 32 of 64 layers takes 47% of a plain step" in how
    assert float(value.split("x")[0]) > float(whole[0].split("x")[0])
    monkeypatch.setenv("SPECVLM_SELF_LAYERS", "64")
    status, text = doctor(capsys, *more)
    assert status == 1
    assert "--specvlm-self-layers 64 must be 1 to 63" in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--video-tokens", "0"), "--video-tokens 0 must be 1 to 10,000,000"),
        (("--video-tokens", "9", "--tp", "0"), "--tp 0 must be 1 to 1,024"),
        (("--video-tokens", "9", "--tp", "3"), "--tp 3 must divide the 40 heads of Qwen/Qwen2.5"),
        (("--video-tokens", "9", "--gpu-memory", "-1"), "--gpu-memory -1.0 must be 4 to 4,096"),
        (("--video-tokens", "9", "--gpu-memory", "nan"), "--gpu-memory nan must be 4 to 4,096"),
        (("--video-tokens", "9", "--batch", "0"), "--batch 0 must be 1 to 100,000"),
        (("--video-tokens", "9", "--accept-length", "5"), "--accept-length 5.0 must be 1 to 4"),
    ],
)
def test_a_value_out_of_range_is_named(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status, text = doctor(capsys, *PAIR, *arguments)
    assert status == 1
    assert said in text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--video-tokens", "9"), "--video-tokens needs --target"),
        (("--batch", "2", *PAIR), "--batch needs --video-tokens"),
        (("--tp", "2", *PAIR), "--tp needs --video-tokens"),
        (("--gpu-memory", "80", *PAIR), "--gpu-memory needs --video-tokens"),
        (("--gpu", "H200", *PAIR), "--gpu needs --video-tokens"),
        (("--accept-length", "2", *PAIR), "--accept-length needs --video-tokens"),
        (("--sglang", ".", "--video-tokens", "9"), "--sglang goes without --target, --draft and"),
    ],
)
def test_flags_that_belong_together_are_asked_for(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["doctor", *arguments])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
