"""What keeps a server up is installed when a process says what it is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from specvlm_sglang.host import process_roles
from tests.support.hooks import unhooked


@pytest.mark.parametrize(("role", "expected"), [("scheduler", 1), ("detokenizer", 0)])
def test_an_installer_runs_in_its_own_process_after_sglang_knows_the_role(
    role: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sglang.srt import runtime_context

    order: list[str] = []
    with unhooked(("sglang.srt.runtime_context", "publish")):

        def publish(server_args: Any, *, role: str, **kwargs: Any) -> str:
            order.append("published")
            return "context"

        monkeypatch.setattr(runtime_context, "publish", publish)
        process_roles.install({"scheduler": lambda: order.append("installed")})
        assert runtime_context.publish(SimpleNamespace(), role=role) == "context"
    assert order == ["published", *["installed"] * expected]
