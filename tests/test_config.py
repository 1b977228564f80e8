"""Settings: their values, their ranges, and where they are read from."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specvlm_sglang.config import SpecVLMConfig, add_flags, export_flags, export_keywords
from specvlm_sglang.pruning.registry import shipped_policies

POLICIES = tuple(shipped_policies())

FIELDS = (
    "retention",
    "top_p",
    "policy",
    "policy_file",
    "max_query_rows",
    "draft_video_tokens",
    "draft_kv_tokens",
    "exact_vision",
    "positions",
    "audit",
    "draft",
    "self_layers",
)
POLICY_FILE = str(Path(__file__).parents[1] / "examples" / "pruning_policy.py")
VARIABLES = tuple(f"SPECVLM_{name.upper()}" for name in FIELDS)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        # Set first: what the code under test writes is then undone at the end.
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    export_keywords({})


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return parser.parse_args(argv)


def test_without_any_setting_the_defaults_of_the_documentation_apply() -> None:
    assert SpecVLMConfig.from_environment({}) == SpecVLMConfig(
        retention=0.1,
        top_p=0.2,
        policy="specvlm",
        policy_file=None,
        max_query_rows=256,
        draft_kv_tokens=None,
        exact_vision=False,
        audit=0.0,
    )


@pytest.mark.parametrize(
    ("variable", "text", "name", "value"),
    [
        ("SPECVLM_RETENTION", "0.25", "retention", 0.25),
        ("SPECVLM_RETENTION", " 1 ", "retention", 1.0),
        ("SPECVLM_TOP_P", "0", "top_p", 0.0),
        ("SPECVLM_TOP_P", "1", "top_p", 1.0),
        ("SPECVLM_MAX_QUERY_ROWS", "1", "max_query_rows", 1),
        ("SPECVLM_DRAFT_KV_TOKENS", "4096", "draft_kv_tokens", 4096),
        ("SPECVLM_DRAFT_VIDEO_TOKENS", "2048", "draft_video_tokens", 2048),
        ("SPECVLM_EXACT_VISION", "1", "exact_vision", True),
        ("SPECVLM_EXACT_VISION", "Yes", "exact_vision", True),
        ("SPECVLM_EXACT_VISION", "off", "exact_vision", False),
        ("SPECVLM_POSITIONS", "original", "positions", "original"),
        ("SPECVLM_DRAFT", "self", "draft", "self"),
        ("SPECVLM_SELF_LAYERS", "12", "self_layers", 12),
        ("SPECVLM_AUDIT", "0.01", "audit", 0.01),
        ("SPECVLM_AUDIT", "0", "audit", 0.0),
        ("SPECVLM_AUDIT", "1", "audit", 1.0),
        ("SPECVLM_RETENTION", "", "retention", 0.1),
        ("SPECVLM_POLICY", "  ", "policy", "specvlm"),
        *[("SPECVLM_POLICY", policy, "policy", policy) for policy in POLICIES],
    ],
)
def test_a_variable_sets_its_field(variable: str, text: str, name: str, value: object) -> None:
    config = SpecVLMConfig.from_environment({variable: text})
    assert getattr(config, name) == value
    assert type(getattr(config, name)) is type(value)


@pytest.mark.parametrize(
    ("variable", "text", "words"),
    [
        ("SPECVLM_RETENTION", "0", ["--specvlm-retention=0.0", "(0, 1]"]),
        ("SPECVLM_RETENTION", "1.01", ["--specvlm-retention=1.01", "(0, 1]"]),
        ("SPECVLM_RETENTION", "-0.1", ["--specvlm-retention=-0.1", "(0, 1]"]),
        ("SPECVLM_RETENTION", "nan", ["--specvlm-retention=nan", "(0, 1]"]),
        ("SPECVLM_RETENTION", "ten", ["SPECVLM_RETENTION='ten'", "not a number"]),
        ("SPECVLM_TOP_P", "1.5", ["--specvlm-top-p=1.5", "[0, 1]"]),
        ("SPECVLM_TOP_P", "nan", ["--specvlm-top-p=nan", "[0, 1]"]),
        ("SPECVLM_POLICY", "best", ["--specvlm-policy='best'", *POLICIES]),
        ("SPECVLM_MAX_QUERY_ROWS", "0", ["--specvlm-max-query-rows=0", "at least 1"]),
        ("SPECVLM_MAX_QUERY_ROWS", "1.5", ["SPECVLM_MAX_QUERY_ROWS='1.5'", "not an integer"]),
        ("SPECVLM_DRAFT_KV_TOKENS", "1", ["--specvlm-draft-kv-tokens=1", "at least 2"]),
        ("SPECVLM_DRAFT_VIDEO_TOKENS", "0", ["--specvlm-draft-video-tokens=0", "at least 1"]),
        ("SPECVLM_DRAFT_VIDEO_TOKENS", "ten", ["SPECVLM_DRAFT_VIDEO_TOKENS='ten'", "integer"]),
        ("SPECVLM_EXACT_VISION", "maybe", ["SPECVLM_EXACT_VISION='maybe'", "true", "off"]),
        ("SPECVLM_AUDIT", "1.5", ["--specvlm-audit=1.5", "[0, 1]"]),
        ("SPECVLM_AUDIT", "-0.1", ["--specvlm-audit=-0.1", "[0, 1]"]),
        ("SPECVLM_AUDIT", "nan", ["--specvlm-audit=nan", "[0, 1]"]),
        ("SPECVLM_AUDIT", "half", ["SPECVLM_AUDIT='half'", "not a number"]),
        ("SPECVLM_DRAFT", "other", ["--specvlm-draft='other'", "model", "self"]),
        ("SPECVLM_SELF_LAYERS", "0", ["--specvlm-self-layers=0", "at least 1"]),
        ("SPECVLM_SELF_LAYERS", "half", ["SPECVLM_SELF_LAYERS='half'", "not an integer"]),
        ("SPECVLM_POSITIONS", "own", ["--specvlm-positions='own'", "contiguous", "original"]),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_with_its_name_and_range(
    variable: str, text: str, words: list[str]
) -> None:
    with pytest.raises(ValueError) as refusal:  # noqa: PT011  (the words are checked below)
        SpecVLMConfig.from_environment({variable: text})
    for word in words:
        assert word in str(refusal.value)


def test_a_retention_given_as_a_truth_value_is_refused() -> None:
    with pytest.raises(ValueError, match="--specvlm-retention=True"):
        SpecVLMConfig(retention=True)


def test_every_setting_has_a_flag_that_writes_its_variable() -> None:
    arguments = parse(
        "--specvlm-retention=0.2",
        "--specvlm-top-p=0.5",
        "--specvlm-policy=uniform",
        f"--specvlm-policy-file={POLICY_FILE}",
        "--specvlm-max-query-rows=32",
        "--specvlm-draft-video-tokens=300",
        "--specvlm-draft-kv-tokens=512",
        "--specvlm-exact-vision",
        "--specvlm-positions=original",
        "--specvlm-audit=0.25",
        "--specvlm-draft=model",
        "--specvlm-self-layers=7",
    )
    export_flags(arguments)
    assert [os.environ[variable] for variable in VARIABLES] == [
        "0.2",
        "0.5",
        "uniform",
        POLICY_FILE,
        "32",
        "300",
        "512",
        "1",
        "original",
        "0.25",
        "model",
        "7",
    ]
    assert SpecVLMConfig.from_environment() == SpecVLMConfig(
        0.2, 0.5, "uniform", POLICY_FILE, 32, 300, 512, True, "original", 0.25, "model", 7
    )


def test_a_flag_wins_over_its_variable_and_leaves_the_others_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SPECVLM_RETENTION", "0.5")
    monkeypatch.setenv("SPECVLM_POLICY", "random")
    monkeypatch.setenv("SPECVLM_EXACT_VISION", "1")
    export_flags(parse("--specvlm-retention", "0.3"))
    config = SpecVLMConfig.from_environment()
    assert (config.retention, config.policy, config.exact_vision) == (0.3, "random", True)


def test_a_value_out_of_range_names_the_variable_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECVLM_TOP_P", "1.5")
    with pytest.raises(ValueError, match=r"--specvlm-top-p=1\.5 .*\(the flag, or SPECVLM_TOP_P\)"):
        SpecVLMConfig.from_environment()


def test_without_flags_nothing_is_written() -> None:
    export_flags(parse())
    assert not set(VARIABLES) & set(os.environ)


def test_a_flag_out_of_range_is_refused_while_the_arguments_are_read() -> None:
    with pytest.raises(ValueError, match=r"--specvlm-retention=2\.0 must be a number in \(0, 1\]"):
        export_flags(parse("--specvlm-retention", "2"))


def test_every_setting_is_a_keyword_of_an_engine() -> None:
    given = {
        "specvlm_retention": 0.2,
        "specvlm_top_p": 1,
        "specvlm_policy": "uniform",
        "specvlm_policy_file": Path(POLICY_FILE),
        "specvlm_max_query_rows": 32,
        "specvlm_draft_video_tokens": 300,
        "specvlm_draft_kv_tokens": 512,
        "specvlm_exact_vision": True,
        "specvlm_positions": "original",
        "specvlm_audit": 0.25,
        "specvlm_draft": "self",
        "specvlm_self_layers": 3,
    }
    assert list(given) == [f"specvlm_{name}" for name in FIELDS]
    export_keywords(given)
    assert SpecVLMConfig.from_environment() == SpecVLMConfig(
        0.2, 1.0, "uniform", POLICY_FILE, 32, 300, 512, True, "original", 0.25, "self", 3
    )


def test_a_policy_may_be_in_the_file_of_another_keyword() -> None:
    export_keywords({"specvlm_policy": "frame-peaks", "specvlm_policy_file": POLICY_FILE})
    assert SpecVLMConfig.from_environment().policy == "frame-peaks"


@pytest.mark.parametrize(
    ("keyword", "value", "said"),
    [
        ("retention", 2, "specvlm_retention=2.0 must be a number in (0, 1]"),
        ("retention", True, "specvlm_retention=True: not a number"),
        ("retention", "ten", "specvlm_retention='ten': not a number"),
        ("retention", [0.1], "specvlm_retention=[0.1]: not a number"),
        ("policy", "best", "specvlm_policy='best' must be one of specvlm"),
        ("policy", "", "specvlm_policy='': is empty"),
        ("max_query_rows", 1.5, "specvlm_max_query_rows=1.5: not an integer"),
        ("draft_kv_tokens", 1, "specvlm_draft_kv_tokens=1 must be at least 2"),
        ("exact_vision", 2, "specvlm_exact_vision=2: must be True or False"),
        ("audit", -1, "specvlm_audit=-1.0 must lie in [0, 1]"),
        ("retension", 0.1, "specvlm_retension is no setting of SpecVLM: must be one of specvlm_re"),
    ],
)
def test_a_keyword_that_cannot_be_used_is_refused_by_its_name(
    keyword: str, value: object, said: str
) -> None:
    with pytest.raises(ValueError) as refusal:  # noqa: PT011  (the words are checked below)
        export_keywords({"specvlm_top_p": 0.5, f"specvlm_{keyword}": value})
    assert str(refusal.value).startswith(said)
    assert "SPECVLM_" not in str(refusal.value)
    assert not set(VARIABLES) & set(os.environ)


def test_keywords_are_one_engines_and_give_back_what_they_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SPECVLM_RETENTION", "0.5")
    export_keywords({"specvlm_retention": 0.3, "specvlm_top_p": 0.9, "specvlm_policy": None})
    config = SpecVLMConfig.from_environment()
    assert (config.retention, config.top_p, config.policy) == (0.3, 0.9, "specvlm")
    os.environ["SPECVLM_TOP_P"] = "0.7"
    export_keywords({})
    config = SpecVLMConfig.from_environment()
    assert (config.retention, config.top_p) == (0.5, 0.7)


def test_the_line_printed_at_start_names_every_setting() -> None:
    line = str(SpecVLMConfig(policy="frames", draft_kv_tokens=99))
    assert "\n" not in line
    assert [part.split("=")[0] for part in line.split(", ")] == list(FIELDS)
    assert "policy=frames" in line
    assert "draft_kv_tokens=99" in line


@given(
    retention=st.floats(0.01, 1),
    target=st.integers(2, 10**7),
    requests=st.integers(1, 256),
    reserve=st.integers(2, 128),
)
def test_the_default_draft_pool_holds_the_kept_share_and_never_exceeds_the_target(
    retention: float, target: int, requests: int, reserve: int
) -> None:
    tokens = SpecVLMConfig(retention=retention).default_draft_kv_tokens(
        target, max_running_requests=requests, reserve=reserve
    )
    assert tokens <= target
    assert tokens >= min(target, int(retention * target) + requests * reserve)


@pytest.mark.parametrize("config", [SpecVLMConfig(retention=1.0), SpecVLMConfig(policy="none")])
def test_a_draft_that_keeps_everything_gets_as_many_slots_as_the_target(
    config: SpecVLMConfig,
) -> None:
    assert config.draft_kv_share == 1
    assert config.default_draft_kv_tokens(8192, max_running_requests=8, reserve=8) == 8192


def test_at_the_default_retention_the_draft_pool_is_about_a_third_of_the_targets() -> None:
    tokens = SpecVLMConfig().default_draft_kv_tokens(100_000, max_running_requests=10, reserve=20)
    assert tokens == 35_200
