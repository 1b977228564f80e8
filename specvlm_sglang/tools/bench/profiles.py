"""Runs with a name: a short one for every day, and the one that decides."""

from __future__ import annotations

from typing import Any

PROFILES: dict[str, dict[str, Any]] = {
    "short": {
        "workloads": ("512", "2k-short"),
        "configurations": ["plain", "specvlm-0.1", "unpruned"],
        "rounds": 3,
        "parameters": 100_000_000,
        "draft_parameters": 10_000_000,
        "servers_at_once": 2,
    },
    "deciding": {
        "workloads": ("2k-short", "2k-128", "2k", "2k-x4", "2k-x8", "8k", "16k"),
        "configurations": [
            *("plain", "unpruned", "specvlm-0.25", "specvlm-0.1", "specvlm-0.05"),
            *("specvlm-spread-0.1", "unpruned-tree", "specvlm-0.1-tree"),
        ],
        "rounds": 5,
        "parameters": 500_000_000,
        "draft_parameters": 50_000_000,
        "servers_at_once": 3,
    },
}
"""Flags by profile: the short one's ten times cheaper draft stands for the deciding one's."""
