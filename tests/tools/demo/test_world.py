"""The procedural world: scenes, pictures, words, and their agreement."""

import av
import numpy as np
import pytest

from benchmarks.tinyvid.facts import claims, compare
from benchmarks.tinyvid.vocabulary import build_tokenizer
from specvlm_sglang.tools.demo.world import caption, make_scene, questions, render, write_clip
from specvlm_sglang.tools.demo.world.language import KINDS, NUMBERS, plain
from specvlm_sglang.tools.demo.world.render import FPS, RGB
from specvlm_sglang.tools.demo.world.scene import MOTIONS

SEEDS = range(40)


@pytest.mark.parametrize("seconds", [2, 8, 16])
def test_a_seed_gives_the_same_scene_picture_and_words_every_time(seconds: int) -> None:
    first, second = make_scene(5, seconds), make_scene(5, seconds)
    assert first == second
    np.testing.assert_array_equal(
        render(first, [0.5, 1.5], side=112), render(second, [0.5, 1.5], side=112)
    )
    assert caption(first) == caption(second)
    assert make_scene(6, seconds) != first


def test_actors_stay_inside_the_picture_and_come_one_at_a_time() -> None:
    for seed in SEEDS:
        scene = make_scene(seed, 12)
        starts = [actor.start for actor in scene.actors]
        assert starts == sorted(set(starts))
        looks = {(actor.colour, actor.shape) for actor in scene.actors}
        assert len(looks) == len(scene.actors)
        for actor in scene.actors:
            assert actor.end - actor.start >= 2 or actor.end == scene.seconds
            for time in (actor.start, actor.end):
                place = actor.position(time)
                assert all(actor.size / 2 < value < 1 - actor.size / 2 for value in place)


def test_all_kinds_of_facts_occur() -> None:
    scenes = [make_scene(seed, 12) for seed in SEEDS]
    actors = [actor for scene in scenes for actor in scene.actors]
    assert {actor.motion for actor in actors} == set(MOTIONS)
    assert any(actor.change for actor in actors)
    assert any(actor.meets is not None for actor in actors)
    assert {phrase.kind for scene in scenes for phrase in caption(scene)} == {None, *KINDS}


def test_an_actor_that_meets_another_rests_beside_it_while_both_are_on_screen() -> None:
    met = 0
    for seed in range(200):
        scene = make_scene(seed, 12)
        for actor in scene.actors:
            if actor.meets is None:
                continue
            met += 1
            host = scene.actors[actor.meets]
            (x, y), (host_x, host_y) = actor.position(actor.end - 0.25), (host.x, host.y)
            apart = max(abs(x - host_x), abs(y - host_y)) - (actor.size + host.size) / 2
            assert 0 <= apart < 0.02
            assert host.motion == "still"
            assert host.visible(actor.end - 0.25)
    assert met > 10


def test_captions_state_exactly_the_facts_of_the_scene() -> None:
    for seed in SEEDS:
        scene = make_scene(seed, 10)
        said = claims(plain(caption(scene)))
        assert said.pop() == {"length": "ten"}
        expected = []
        for actor in scene.actors:
            row, column = scene.place(actor)
            fact = {"colour": actor.colour, "shape": actor.shape, "row": row, "column": column}
            fact["motion"] = "rests" if actor.motion == "still" else actor.motion
            fact["start"] = NUMBERS[actor.start]
            fact["end"] = "stays" if actor.end == scene.seconds else NUMBERS[actor.end]
            if actor.change:
                fact |= {"change": NUMBERS[actor.change[0]], "new colour": actor.change[1]}
            if actor.meets is not None:
                host = scene.actors[actor.meets]
                fact["meets"] = f"{host.colour} {host.shape}"
            expected.append(fact)
        assert said == expected


def test_captions_of_long_clips_have_80_to_200_tokens() -> None:
    tokenizer = build_tokenizer()
    lengths = [len(tokenizer(plain(caption(make_scene(s, 16)))).input_ids) for s in SEEDS]
    assert min(lengths) >= 80
    assert max(lengths) <= 200


def test_each_word_of_the_world_is_one_token() -> None:
    tokenizer = build_tokenizer()
    for seed in SEEDS:
        for phrase in caption(make_scene(seed, 12)):
            assert len(tokenizer(phrase.text).input_ids) == 1, phrase


def test_tokens_of_phrases_are_those_of_the_whole_text() -> None:
    tokenizer = build_tokenizer()
    for seed in SEEDS:
        scene = make_scene(seed, 12)
        for phrases in (caption(scene), *(question.answer for question in questions(scene))):
            pieces = [token for p in phrases for token in tokenizer(p.text).input_ids]
            assert pieces == tokenizer(plain(phrases)).input_ids


def test_questions_have_one_answer_each() -> None:
    for seed in SEEDS:
        asked = [question.text for question in questions(make_scene(seed, 12))]
        assert len(asked) == len(set(asked))


def test_a_wrong_colour_and_an_invented_sentence_cost_facts() -> None:
    truth = "At second one a red ring appears at the upper left, moves up and stays."
    assert compare(truth, truth)[0] == compare(truth, truth)[1]
    right, total = compare(truth.replace("red", "blue"), truth)
    assert (right["colour"], total["colour"], right["shape"]) == (0, 1, 1)
    right, total = compare(f"{truth} {truth}", truth)
    assert (right["shape"], total["shape"]) == (1, 2)
    right, total = compare("", truth)
    assert sum(right.values()) == 0
    assert sum(total.values()) == 7


@pytest.mark.parametrize("side", [112, 224])
def test_a_clip_survives_the_way_through_mp4(tmp_path, side: int) -> None:
    scene = make_scene(7, 4)
    path = write_clip(tmp_path / "clip.mp4", scene, side=side)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert float(stream.average_rate) == FPS
        decoded = np.stack([f.to_ndarray(format="rgb24") for f in container.decode(stream)])
    drawn = render(scene, [index / FPS for index in range(4 * FPS)], side=side)
    assert decoded.shape == drawn.shape
    assert abs(decoded.astype(float) - drawn).mean() < 4


def test_an_actor_is_drawn_in_its_colour_where_the_scene_says(tmp_path) -> None:
    for seed in range(10):
        scene = make_scene(seed, 8)
        for actor in scene.actors:
            if actor.shape == "ring":
                continue
            time = actor.start + 0.5
            x, y = (round(value * 112) for value in actor.position(time))
            pixel = render(scene, [time], side=112)[0, y, x]
            np.testing.assert_array_equal(pixel, RGB[actor.colour])


def test_questionable_sizes_are_refused_by_name(tmp_path) -> None:
    with pytest.raises(ValueError, match="seconds must be 2 to 16, got 17"):
        make_scene(0, 17)
    with pytest.raises(ValueError, match="max_actors must be at least 1, got 0"):
        make_scene(0, 8, max_actors=0)
    with pytest.raises(ValueError, match="smaller of width and height must be 1"):
        make_scene(0, 8, width=2.0, height=2.0)
    with pytest.raises(ValueError, match="side must be at least 56"):
        render(make_scene(0, 8), [0.0], side=20)
    with pytest.raises(ValueError, match=r"times must be within \[0, 8\)"):
        render(make_scene(0, 8), [8.0], side=112)
    with pytest.raises(ValueError, match="even edges"):
        write_clip(tmp_path / "odd.mp4", make_scene(0, 8), side=113)
