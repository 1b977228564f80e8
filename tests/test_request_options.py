"""Options of one request: what ``custom_params`` may hold, and what happens to the rest."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.sampling.sampling_params import SamplingParams

from specvlm_sglang.algorithm import check_options
from specvlm_sglang.config import SpecVLMConfig
from specvlm_sglang.host import request_validation
from specvlm_sglang.pruning.registry import shipped_policies
from specvlm_sglang.request_options import RequestOptions, options_of, parse_options
from tests.support.hooks import unhooked

POLICIES = tuple(shipped_policies())

SERVER = SpecVLMConfig(retention=0.3, policy="uniform")
BAD = [
    ([1], r"custom_params\.specvlm=\[1\] must be an object"),
    ("0.5", r"custom_params\.specvlm='0\.5' must be an object"),
    ({"retension": 0.5}, "no field 'retension'; it takes retention, policy, top_p, detail"),
    ({"retention": 0}, r"retention=0 must be a number in \(0, 1\]"),
    ({"retention": 1.5}, r"retention=1\.5"),
    ({"retention": "0.5"}, r"retention='0\.5'"),
    ({"retention": True}, "retention=True"),
    ({"retention": None}, "retention=None"),
    ({"retention": float("nan")}, "retention=nan"),
    ({"top_p": 1.5}, r"top_p=1\.5 must be a number in \[0, 1\]"),
    ({"top_p": -0.1}, r"top_p=-0\.1"),
    ({"top_p": True}, "top_p=True"),
    ({"detail": 1}, "detail=1 must be true or false"),
    ({"detail": "yes"}, "detail='yes'"),
    ({"detail": None}, "detail=None"),
    ({"policy": "best"}, "policy='best' must be one of specvlm"),
    ({"policy": None}, "policy=None"),
    ({"policy": ["specvlm"]}, r"policy=\['specvlm'\]"),
]


@pytest.fixture
def validation() -> Iterator[None]:
    with unhooked(("sglang.srt.sampling.sampling_params", "SamplingParams.verify")):
        request_validation.install(check_options)
        yield


@pytest.mark.parametrize("custom", [None, {}, {"other": 1}, {"specvlm": None}, [1], "text"])
def test_a_request_without_options_gets_the_servers(custom: Any) -> None:
    assert parse_options(custom, SERVER) == RequestOptions(0.3, "uniform", 0.2)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"retention": 0.25}, (0.25, "uniform", SERVER.top_p)),
        ({"retention": 1}, (1, "uniform", SERVER.top_p)),
        ({"policy": "none"}, (0.3, "none", SERVER.top_p)),
        ({"retention": 0.01, "policy": "specvlm-grid"}, (0.01, "specvlm-grid", SERVER.top_p)),
        ({"top_p": 0}, (0.3, "uniform", 0)),
        ({}, (0.3, "uniform", SERVER.top_p)),
    ],
)
def test_what_a_request_gives_overrides_the_servers_settings(
    given: dict[str, Any], expected: tuple[float, str, float]
) -> None:
    options = parse_options({"specvlm": given}, SERVER)
    assert (options.retention, options.policy, options.top_p) == expected


@pytest.mark.parametrize(("given", "message"), BAD)
def test_bad_options_are_refused_with_their_name_and_value(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_options({"specvlm": given}, SERVER)


def test_only_scored_policies_read_scores_and_only_spaced_ones_need_a_grid() -> None:
    options = {policy: RequestOptions(0.5, policy, 0.2) for policy in POLICIES}
    scored = {policy for policy, option in options.items() if option.chosen.needs_scores}
    gridded = {policy for policy, option in options.items() if option.chosen.needs_grid}
    assert scored == {"specvlm", "specvlm-grid", "attention"}
    assert gridded == {"specvlm-grid", "uniform-grid", "frames"}


@pytest.mark.usefixtures("validation")
@pytest.mark.parametrize(("given", "message"), BAD)
def test_sglang_refuses_the_request_where_it_checks_sampling_parameters(
    given: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingParams(custom_params={"specvlm": given}).verify(vocab_size=100)


@pytest.mark.usefixtures("validation")
def test_sglangs_own_checks_stay_in_place() -> None:
    with pytest.raises(ValueError, match="temperature"):
        SamplingParams(temperature=-1.0, custom_params={"specvlm": {}}).verify(vocab_size=100)
    SamplingParams(custom_params={"specvlm": {"retention": 0.5}}).verify(vocab_size=100)
    SamplingParams().verify(vocab_size=100)


def test_options_are_parsed_once_per_request() -> None:
    req = SimpleNamespace(
        rid="a", sampling_params=SamplingParams(custom_params={"specvlm": {"retention": 0.5}})
    )
    first = options_of(req, SERVER)
    assert first == RequestOptions(0.5, "uniform", 0.2)
    req.sampling_params.custom_params = None
    assert options_of(req, SERVER) is first


def test_options_that_slipped_through_give_way_to_the_servers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    req = SimpleNamespace(
        rid="slipped", sampling_params=SamplingParams(custom_params={"specvlm": {"policy": "x"}})
    )
    with caplog.at_level(logging.WARNING):
        assert options_of(req, SERVER) == RequestOptions(0.3, "uniform", 0.2)
        options_of(req, SERVER)
    (warning,) = caplog.messages
    assert "slipped" in warning
    assert "policy='x'" in warning


def test_detail_is_given_only_to_a_request_that_asks_for_it() -> None:
    assert not parse_options(None, SERVER).detail
    assert not parse_options({"specvlm": {"retention": 0.5}}, SERVER).detail
    assert parse_options({"specvlm": {"detail": True}}, SERVER).detail
