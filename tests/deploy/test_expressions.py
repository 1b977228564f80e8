"""Dashboard and alerts: every expression parses, and names metrics that we or SGLang define."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import promql_parser
import pytest
import sglang.srt.observability.metrics_collector as sglang_metrics
import yaml

from specvlm_sglang.report import observer

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
DASHBOARD = DEPLOY / "grafana" / "specvlm.json"
RULES = DEPLOY / "prometheus" / "rules.yml"
_METRIC = re.compile(r"\b(?:sglang:|specvlm_)\w+")
_PARTS = re.compile(r"_(?:bucket|sum|count)$")


def expressions() -> Iterator[str]:
    """Of all panels and alerts, with Grafana's variables filled in."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel["targets"]:
            yield target["expr"].replace("$instance", ".*")
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["expr"]


def metrics() -> set[str]:
    """Names that the expressions use, histograms by their own."""
    return {_PARTS.sub("", name) for one in expressions() for name in _METRIC.findall(one)}


@pytest.mark.parametrize("expression", expressions())
def test_an_expression_parses(expression: str) -> None:
    assert _METRIC.search(str(promql_parser.parse(expression).prettify()))


def test_an_expression_that_is_none_is_noticed() -> None:
    with pytest.raises(ValueError, match="unclosed left parenthesis"):
        promql_parser.parse("sum(rate(specvlm_requests_total[5m])")


def test_every_metric_is_defined_in_the_source() -> None:
    source = Path(observer.__file__).read_text() + Path(sglang_metrics.__file__).read_text()
    defined = {
        name.removesuffix("_total") for name in re.findall(r'"((?:sglang:|specvlm_)\w+)"', source)
    }
    assert {name.removesuffix("_total") for name in metrics()} <= defined


def test_every_metric_of_ours_is_on_the_dashboard() -> None:
    ours = set(re.findall(r'"(specvlm_\w+)"', Path(observer.__file__).read_text()))
    assert ours <= metrics()


def test_panels_do_not_overlap_and_alerts_say_what_to_do() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(places) == len(panels) == len({panel["id"] for panel in panels})
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            assert set(rule["annotations"]) == {"summary", "description"}, rule["alert"]
