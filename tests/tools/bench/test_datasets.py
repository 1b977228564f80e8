"""The paper's benchmarks, from miniature folders laid out as their repositories are."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from specvlm_sglang.tools.bench.datasets import DATASETS, DESCRIBE, load
from specvlm_sglang.tools.bench.workloads import sample_tasks
from specvlm_sglang.tools.errors import ToolError
from tests.support.clips import write_clip


def clip(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_clip(path, frames=2, height=32, width=32)


def write_json(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows))


def write_parquet(path, columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def choice_row(video, **more):
    """A multiple-choice sample as MVBench and MLVU have it."""
    return {"video": video, "question": "Which?", "candidates": ["a", "b"], "answer": "a", **more}


def videodetailcaption(root):
    names = ["v_one", "v_two", "v_three"]
    for name, ending in zip(names, ["mp4", "mkv", "mp4"], strict=True):
        clip(root / "Test_Videos" / "clip.mp4").rename(root / "Test_Videos" / f"{name}.{ending}")
    columns = {"video_name": names, "question": [f"What about {n}?" for n in names]}
    write_parquet(root / "data/test-00000-of-00001.parquet", {**columns, "answer": ["x"] * 3})


def mvbench(root, videos="video/star/Charades_v1_480"):
    for name in ("A.mp4", "B.mp4", "C.mp4"):
        clip(root / videos / name)
    bounds = {"start": 1.5, "end": 9.0}
    sequence = [choice_row(name, **bounds) for name in ("A.mp4", "A.mp4", "B.mp4")]
    write_json(root / "json/action_sequence.json", sequence)
    prediction = [choice_row(name, **bounds) for name in ("C.mp4", "B.mp4")]
    write_json(root / "json/action_prediction.json", prediction)


def mlvu(root):
    asked = {"1_plotQA": ["p1.mp4", "p1.mp4", "p2.mp4"], "9_summary": ["s1.mp4"]}
    for task, names in asked.items():
        for name in names:
            clip(root / "MLVU/video" / task / name)
        rows = [choice_row(name, duration=246, question_type=task[2:]) for name in names]
        write_json(root / f"MLVU/json/{task}.json", rows)


def longvideobench(root):
    rows = []
    for name in ("x.mp4", "x.mp4", "y.mp4"):
        clip(root / "videos" / name)
        rows.append({"id": f"{name}_{len(rows)}", "video_id": name[0], "video_path": name})
        rows[-1] |= {"question": "When?", "candidates": ["a", "b"], "subtitle_path": "x_en.json"}
    write_json(root / "lvb_test_wo_gt.json", rows)


BUILDERS = {
    "videodetailcaption": videodetailcaption,
    "mvbench": mvbench,
    "mlvu": mlvu,
    "longvideobench": longvideobench,
}
EXPECTED = {
    "videodetailcaption": ["v_one.mp4", "v_two.mkv", "v_three.mp4"],
    "mvbench": ["A.mp4", "C.mp4", "B.mp4"],
    "mlvu": ["p1.mp4", "s1.mp4", "p2.mp4"],
    "longvideobench": ["x.mp4", "y.mp4"],
}


def test_every_dataset_has_a_miniature_here():
    assert set(BUILDERS) == set(DATASETS)


@pytest.mark.parametrize("name", DATASETS)
def test_the_published_layout_gives_every_video_once_with_the_papers_limits(name, tmp_path):
    BUILDERS[name](tmp_path)
    samples = load(name, tmp_path)
    assert [sample.video.name for sample in samples] == EXPECTED[name]
    assert all(sample.video.is_file() for sample in samples)
    assert len({sample.sample_id for sample in samples}) == len(samples)
    assert {(sample.max_tokens, sample.frames) for sample in samples} == {(256, 64)}


def test_videodetailcaption_asks_each_videos_own_question(tmp_path):
    videodetailcaption(tmp_path)
    asked = [sample.question for sample in load("videodetailcaption", tmp_path)]
    assert asked == ["What about v_one?", "What about v_two?", "What about v_three?"]


@pytest.mark.parametrize("name", ["mvbench", "mlvu", "longvideobench"])
def test_the_other_three_ask_for_a_description_whatever_their_question_is(name, tmp_path):
    BUILDERS[name](tmp_path)
    assert {sample.question for sample in load(name, tmp_path)} == {DESCRIBE}


def test_mvbench_also_reads_the_layout_of_its_video_branch(tmp_path):
    mvbench(tmp_path, "star/Charades_v1_480")
    assert [sample.video.name for sample in load("mvbench", tmp_path)] == EXPECTED["mvbench"]


def test_mlvu_also_reads_the_folder_inside_its_repository(tmp_path):
    mlvu(tmp_path)
    assert load("mlvu", tmp_path / "MLVU") == load("mlvu", tmp_path)


@pytest.mark.parametrize("name", DATASETS)
def test_a_limit_takes_the_front_and_needs_no_video_behind_it(name, tmp_path):
    BUILDERS[name](tmp_path)
    everything = load(name, tmp_path)
    everything[-1].video.unlink()
    assert load(name, tmp_path, limit=1) == everything[:1]


@pytest.mark.parametrize("name", DATASETS)
def test_a_missing_video_is_named_with_the_place_it_belongs(name, tmp_path):
    BUILDERS[name](tmp_path)
    missing = load(name, tmp_path)[0].video
    missing.unlink()
    with pytest.raises(ToolError, match=str(missing)):
        load(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("videodetailcaption", r"data/test-00000-of-00001\.parquet.*video_name and question"),
        ("mvbench", r"json/action_sequence\.json, a JSON list"),
        ("mlvu", r"MLVU/json/1_plotQA\.json.*9_summary"),
        ("longvideobench", r"lvb_test_wo_gt\.json, a JSON list"),
    ],
)
def test_an_empty_folder_is_refused_with_the_file_that_was_expected(name, expected, tmp_path):
    with pytest.raises(ToolError, match=expected):
        load(name, tmp_path)


def test_a_parquet_file_without_the_column_names_it_and_those_it_has(tmp_path):
    write_parquet(tmp_path / "data/test-00000-of-00001.parquet", {"video_name": ["v"]})
    with pytest.raises(ToolError, match=r"no column 'question'; it has video_name"):
        load("videodetailcaption", tmp_path)


def test_a_file_that_is_not_parquet_is_named(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/test-00000-of-00001.parquet").write_text("version https://git-lfs")
    with pytest.raises(ToolError, match=r"test-00000-of-00001\.parquet is not a Parquet file"):
        load("videodetailcaption", tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version https://git-lfs", "is not valid JSON"),
        ('{"video_path": "x.mp4"}', "holds a dict, expected a JSON list"),
        ('[{"video": "x.mp4"}]', "sample 0 has no text in 'video_path'"),
        ('[{"video_path": 3}]', "sample 0 has no text in 'video_path'"),
    ],
)
def test_a_broken_json_file_is_refused_with_the_reason(text, message, tmp_path):
    (tmp_path / "lvb_test_wo_gt.json").write_text(text)
    with pytest.raises(ToolError, match=message):
        load("longvideobench", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vdc", "."), r"--dataset 'vdc' must be one of videodetailcaption, mvbench"),
        (("mlvu", ".", 0), r"--limit 0 must be at least 1"),
        (("mlvu", "nowhere"), r"nowhere must be an existing folder with the files of mlvu"),
    ],
)
def test_bad_arguments_name_the_flag_and_the_allowed_range(arguments, message, tmp_path):
    name, folder, *rest = arguments
    with pytest.raises(ToolError, match=message):
        load(name, tmp_path / folder, *rest)


def test_the_benchmark_sends_the_video_itself_with_the_samples_limits(tmp_path):
    longvideobench(tmp_path)
    samples = load("longvideobench", tmp_path)
    tasks = sample_tasks(samples)
    assert [len(together) for together in tasks] == [1, 1]
    first = tasks[0][0]
    assert first.questions == (DESCRIBE,)
    assert first.max_tokens == 256
    assert first.video.startswith("data:video/mp4;base64,")
