"""The speed of self-drafting: what is counted of streams and turns; its servers are not started."""

import pytest

from benchmarks.self_draft_speed import PLAIN, Streamed, accept_length, kv_share, rate, summary
from specvlm_sglang.tools import demo
from specvlm_sglang.tools.sizing.checkpoint import dimensions_of


def streamed(*pieces: tuple[float, int], rounds: int = 0) -> Streamed:
    count = pieces[-1][1]
    return Streamed(pieces, tuple(range(count)), rounds, prompt_tokens=9, cached_tokens=8)


def test_a_rate_counts_only_while_all_decode():
    early = streamed((0.0, 1), (1.0, 5), (2.0, 9), (3.0, 13))
    late = streamed((1.5, 1), (2.5, 4), (4.0, 10))
    # From 1.5 s, where the early one has 5, to 3 s, where it has 13 and the late one 4.
    assert rate([early, late]) == pytest.approx((8 + 3) / 1.5)
    with pytest.raises(ValueError, match="must be longer"):
        rate([streamed((0.0, 1), (1.0, 5)), streamed((1.5, 1), (2.0, 9))])


def test_the_first_token_belongs_to_no_round():
    answers = [streamed((0.0, 1), (1.0, 13), rounds=3), streamed((0.0, 1), (1.0, 9), rounds=2)]
    assert accept_length(answers) == (12 + 8) / 5
    assert accept_length([streamed((0.0, 1), (1.0, 9))]) is None


def test_a_turn_is_compared_with_plain_decodings_of_the_same_round():
    def turn(index: int, setting: str, speed: float, ids: list[int]) -> dict:
        length = None if setting == PLAIN else 3.0
        return {
            "round": index,
            "setting": setting,
            "tokens_per_second": speed,
            "tokens_per_processor_second": 2 * speed if setting == PLAIN else speed,
            "accept_length": length,
            "ids": [ids],
            "phases": {} if setting == PLAIN else {"draft": {"seconds": 1.0, "calls": 2}},
        }

    records = [turn(0, PLAIN, 10.0, [1, 2]), turn(0, "s", 12.0, [1, 2])]
    records += [turn(1, "s", 30.0, [1, 3]), turn(1, PLAIN, 20.0, [1, 2])]
    plain, drafted = summary(records)
    assert (plain["over_plain"], plain["answers_unlike_plain"]) == (1.0, 0)
    assert drafted["over_plain"] == pytest.approx((1.2 + 1.5) / 2)
    assert drafted["over_plain_by_processor"] == pytest.approx((0.6 + 0.75) / 2)
    assert (drafted["lowest"], drafted["highest"]) == (1.2, 1.5)
    assert drafted["answers_unlike_plain"] == 1
    assert drafted["phase_seconds"] == {"draft": 2.0}
    assert drafted["phase_calls"] == {"draft": 4}


def test_the_share_of_keys_and_values_is_that_of_their_bytes():
    model = dimensions_of(str(demo.target_path()))
    # 2 x 4 layers x 2 heads x 64 x 2 bytes a token.
    assert model.kv_bytes_per_token == 2048
    weights = 2 * (model.layer_parameters + model.head_parameters)
    kv = 3 * 1000 * 2048
    assert kv_share(model, 1000, 3) == pytest.approx(kv / (kv + weights), rel=0.01)
