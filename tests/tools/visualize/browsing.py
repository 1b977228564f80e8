"""The page in a real Chromium: screens to look at it on, and how to read what they show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reference.selection import select_in_stages
from tests.support.chromium import Chromium
from tests.tools.visualize.example import GRID, RETENTION, SCORES, TOP_P

FRAMES, ROWS, COLUMNS = GRID
AREA = ROWS * COLUMNS
LONG_GRID = [64, 20, 36]


@dataclass(frozen=True)
class Look:
    """A screen: CSS pixels, and the arguments of `Chromium.look`."""

    width: int
    height: int
    more: dict[str, Any] = field(default_factory=dict)


LOOKS = {
    "phone": Look(390, 844, {"scale": 3.0, "mobile": True}),
    "desktop": Look(1280, 800),
    "small-phone-large-text": Look(320, 568, {"scale": 2.0, "mobile": True, "font_size": 32}),
}
EVERY_LOOK = pytest.mark.parametrize("name", LOOKS)
SCHEMES = pytest.mark.parametrize("scheme", ["light", "dark"])


def show(browser: Chromium, page: Path, look: str = "desktop", **features: Any) -> None:
    chosen = LOOKS[look]
    browser.look(chosen.width, chosen.height, **chosen.more, **features)
    browser.open(page)


def stages(retention: float = RETENTION, policy: str = "specvlm") -> list[tuple[int, int]]:
    """Kept tokens of Stage I and II in each frame, by the reference."""
    kept = select_in_stages(SCORES, retention, TOP_P, policy, (FRAMES, ROWS, COLUMNS))
    one, two = (
        np.bincount(tokens // AREA, minlength=FRAMES).tolist()
        for tokens in (kept.stage_one, kept.stage_two)
    )
    return list(zip(one, two, strict=True))


def summary(retention: float, policy: str = "specvlm") -> str:
    one, two = (sum(counts) for counts in zip(*stages(retention, policy), strict=True))
    return f"{one + two} of 60 video tokens kept: {one} in Stage I, {two} in Stage II."


def text_of(browser: Chromium, name: str) -> str:
    text: str = browser.evaluate("document.getElementById(id).textContent", id=name)
    return text


FOCUSED = """(() => {
  const at = document.activeElement, box = at.getBoundingClientRect();
  const style = getComputedStyle(at);
  const order = (list) => [...document.querySelectorAll(list)].indexOf(at);
  const bar = order("#timeline button"), figure = order("figure");
  return { name: bar >= 0 ? `bar ${bar}` : figure >= 0 ? `frame ${figure}`
      : at.id || at.tagName.toLowerCase(),
    ring: style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth),
    ringColour: style.outlineColor,
    seen: box.left >= 0 && box.right <= innerWidth && box.top < innerHeight && box.bottom > 0 };
})()"""


def focused(browser: Chromium) -> str:
    name: str = browser.evaluate(FOCUSED)["name"]
    return name


def focus(browser: Chromium, selector: str) -> None:
    browser.evaluate("document.querySelector(selector).focus()", selector=selector)


def luminance(colour: Sequence[float]) -> float:
    """Relative luminance of an sRGB colour with channels of 0 to 255 (WCAG 2.2)."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (channel / 255 for channel in colour[:3])
    ]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def contrast(one: Sequence[float], two: Sequence[float]) -> float:
    """Contrast ratio, 1 to 21."""
    dark, bright = sorted((luminance(one), luminance(two)))
    return (bright + 0.05) / (dark + 0.05)


def over(colour: Sequence[float], backdrop: Sequence[float]) -> list[float]:
    """An RGBA colour (alpha 0 to 255) painted over an opaque one."""
    alpha = colour[3] / 255
    return [alpha * c + (1 - alpha) * b for c, b in zip(colour[:3], backdrop[:3], strict=True)]


COLOURS = """
function rgba(colour) {
  const context = Object.assign(document.createElement("canvas"), { width: 1, height: 1 })
    .getContext("2d");
  context.fillStyle = colour;
  context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data];
}
function layers(at) {
  const found = [];
  for (; at; at = at.parentElement) found.push(rgba(getComputedStyle(at).backgroundColor));
  return found.reverse();
}
"""


def backdrop(layers: list[list[float]]) -> list[float]:
    colour: list[float] = [255.0, 255.0, 255.0]
    for layer in layers:
        colour = over(layer, colour)
    return colour


PIXELS = """frames.map(({ canvas }) => Array.from({ length: area }, (_, cell) => {
  const at = (x, y) => [...canvas.getContext("2d").getImageData(x, y, 1, 1).data];
  const left = (cell % columns) * CELL, top = Math.floor(cell / columns) * CELL;
  const middle = Math.floor(top + CELL / 2);
  return { corner: at(left + 2, top + 2),
    line: Array.from({ length: Math.floor(CELL / 2) }, (_, x) => at(left + x, middle)) };
}))"""
