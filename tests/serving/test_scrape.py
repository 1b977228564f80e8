"""The dashboard's and the alerts' metrics, in the scrape of a real server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.deploy.test_expressions import metrics
from tests.serving import specvlm
from tests.serving.specvlm import CHAIN, ask, launch
from tests.support.server import Server

pytestmark = pytest.mark.serving


def test_a_server_exports_every_metric_that_dashboard_and_alerts_name(
    serve: Any, vl_target: Path, vl_draft: Path, clip_paths: list[Path], image_paths: list[Path]
) -> None:
    server: Server = serve(vl_target, *launch(vl_draft, *CHAIN))
    case = specvlm.cases(vl_target, clip_paths, image_paths)[1]
    assert specvlm.report(ask(server, case, retention=0.5))["cold"] is None
    assert specvlm.report(ask(server, case, max_tokens=1))["cold"] is not None
    scraped = requests.get(f"{server.url}/metrics", timeout=60).text
    exported = set(re.findall(r"^# TYPE (\S+) ", scraped, re.MULTILINE))
    assert metrics() <= exported, metrics() - exported
