"""The page in a real Chromium: everything has room, can be read, and is drawn where it belongs."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from reference.selection import select_in_stages
from tests.support.chromium import Chromium
from tests.tools.visualize.browsing import (
    COLOURS,
    COLUMNS,
    EVERY_LOOK,
    FRAMES,
    LONG_GRID,
    LOOKS,
    PIXELS,
    ROWS,
    SCHEMES,
    backdrop,
    contrast,
    luminance,
    over,
    show,
)
from tests.tools.visualize.example import RETENTION, SCORES, TOP_P


@EVERY_LOOK
@pytest.mark.parametrize("page", ["short", "long"])
def test_nothing_is_wider_than_the_screen_but_in_its_own_scrolling_box(
    browser: Chromium, pages: dict[str, Path], name: str, page: str
) -> None:
    show(browser, pages[page], name)
    browser.evaluate("document.querySelector('details').open = true")
    width = LOOKS[name].width
    # A phone's layout viewport grows with what overflows it, so both are compared with the screen.
    for measured in browser.evaluate("[document.documentElement.scrollWidth, innerWidth]"):
        assert measured <= width
    outside = browser.evaluate("""[...document.body.querySelectorAll("*")].filter((at) => {
      const box = at.getBoundingClientRect();
      return box.width > 0 && (box.left < 0 || box.right > innerWidth + 0.5)
        && !at.closest(".timeline *, .wide *");
    }).map((at) => at.outerHTML.slice(0, 80))""")
    assert outside == []


@EVERY_LOOK
def test_controls_can_be_hit_and_do_not_overlap(
    browser: Chromium, pages: dict[str, Path], name: str
) -> None:
    show(browser, pages["long"], name)
    boxes = browser.evaluate("""[...document.querySelectorAll(
        "input[type=range], select, label.control, button, summary")].map((at) => {
      const box = at.getBoundingClientRect();
      return { what: at.id || at.textContent, x: box.x, y: box.y, right: box.right,
        bottom: box.bottom };
    })""")
    assert len(boxes) >= LONG_GRID[0] + 5
    for box in boxes:
        assert min(box["right"] - box["x"], box["bottom"] - box["y"]) >= 24, box
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            beside = a["x"] >= b["right"] or b["x"] >= a["right"]
            assert beside or a["y"] >= b["bottom"] or b["y"] >= a["bottom"], (a, b)


@SCHEMES
def test_text_stands_out_from_its_background(
    browser: Chromium, pages: dict[str, Path], scheme: str
) -> None:
    show(browser, pages["short"], prefers_color_scheme=scheme)
    found = browser.evaluate(f"""(() => {{ {COLOURS}
      document.querySelector("details").open = true;
      const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
      const found = [];
      while (walker.nextNode()) {{
        const at = walker.currentNode.parentElement, style = getComputedStyle(at);
        const text = walker.currentNode.textContent.trim();
        if (!text || !at.getClientRects().length) continue;
        found.push({{ text, colour: rgba(style.color), layers: layers(at) }});
      }}
      return found;
    }})()""")
    texts = [one["text"] for one in found]
    for expected in ("As served", "red disc", "moves", "Stage I: high attention", "60"):
        assert expected in texts
    for one in found:
        below = backdrop(one["layers"])
        assert contrast(over(one["colour"], below), below) >= 4.5, one
    dark = luminance(backdrop(found[0]["layers"])) < 0.1
    assert dark == (scheme == "dark")


def test_the_kept_tokens_of_each_stage_and_no_others_are_marked_in_the_frames(
    browser: Chromium, pages: dict[str, Path]
) -> None:
    show(browser, pages["short"])
    browser.evaluate("byId('heat').click()")
    kept = select_in_stages(SCORES, RETENTION, TOP_P, "specvlm", (FRAMES, ROWS, COLUMNS))
    cells = [cell for frame in browser.evaluate(PIXELS) for cell in frame]
    middles = [
        {tuple(cells[token]["line"][-1]) for token in tokens}
        for tokens in (kept.stage_one, kept.stage_two)
    ]
    assert [len(colours) for colours in middles] == [1, 1]
    assert middles[0] != middles[1]
    bare = set(range(60)) - {*kept.stage_one.tolist(), *kept.stage_two.tolist()}
    assert all(pixel[3] == 0 for token in bare for pixel in cells[token]["line"])


def test_the_heat_map_is_ordered_by_brightness_on_dark_and_bright_pictures(
    browser: Chromium, pages: dict[str, Path]
) -> None:
    show(browser, pages["short"])
    corners = [cell["corner"] for frame in browser.evaluate(PIXELS) for cell in frame]
    ranked = np.argsort(SCORES)
    for picture in ([0] * 3, [128] * 3, [255] * 3):
        seen = [over(corners[token], picture) for token in ranked]
        assert contrast(seen[0], seen[-1]) >= 3, picture
        # Colours are stored as bytes: neighbours may be one step off.
        assert all(a[0] <= b[0] + 1.5 for a, b in pairwise(seen))
