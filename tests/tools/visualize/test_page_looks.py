"""The page in a real Chromium: room, contrast and colours on every screen."""

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
def test_controls_are_large_enough_for_a_finger_and_do_not_overlap(
    browser: Chromium, pages: dict[str, Path], name: str
) -> None:
    show(browser, pages["long"], name)
    boxes = browser.evaluate("""[...document.querySelectorAll(
        "input[type=range], select, label.control, button, summary, .control input")].map((at) => {
      const box = at.getBoundingClientRect();
      return { what: at.id || at.textContent, bar: !!at.closest(".timeline"),
        tiny: at.type === "checkbox", nested: !!at.parentElement.closest("label"),
        x: box.x, y: box.y, right: box.right, bottom: box.bottom };
    })""")
    assert len(boxes) >= LONG_GRID[0] + 6
    for box in boxes:
        width, height = box["right"] - box["x"], box["bottom"] - box["y"]
        assert width >= 24, box
        assert height >= (24 if box["tiny"] else 44), box
    apart = [box for box in boxes if not box["nested"]]
    for i, a in enumerate(apart):
        for b in apart[i + 1 :]:
            inside = a["x"] < b["right"] and b["x"] < a["right"]
            assert not (inside and a["y"] < b["bottom"] and b["y"] < a["bottom"]), (a, b)


@pytest.mark.parametrize("page", ["short", "long"])
def test_frames_on_a_phone_are_large_enough_to_tell_tokens_apart(
    browser: Chromium, pages: dict[str, Path], page: str
) -> None:
    show(browser, pages[page], "phone")
    width, columns = browser.evaluate(
        "[document.querySelector('canvas').getBoundingClientRect().width, columns]"
    )
    assert width >= 128
    assert width / columns >= 8


@EVERY_LOOK
def test_no_text_overflows_its_box(browser: Chromium, pages: dict[str, Path], name: str) -> None:
    show(browser, pages["short"], name)
    cut = browser.evaluate("""[...document.querySelectorAll(
        "p, dt, dd, li, summary, label, button:not(.timeline *), figcaption, h1, h2, h3")]
      .filter((at) => at.scrollWidth > at.clientWidth + 1 && at.clientWidth > 0
        && getComputedStyle(at).display !== "inline")
      .map((at) => at.textContent)""")
    assert cut == []


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


@SCHEMES
def test_marks_bars_and_borders_stand_out_from_the_page(
    browser: Chromium, pages: dict[str, Path], scheme: str
) -> None:
    show(browser, pages["short"], prefers_color_scheme=scheme)
    found = browser.evaluate(f"""(() => {{ {COLOURS}
      const pairs = [];
      const add = (selector, property) => {{
        for (const at of document.querySelectorAll(selector)) {{
          pairs.push([selector, rgba(getComputedStyle(at)[property]), layers(at.parentElement)]);
        }}
      }};
      add(".mark.one, .timeline .one", "backgroundColor");
      add(".mark.two, select, #reset", "borderTopColor");
      add(".mark.heat", "outlineColor");
      add(".drafted, .own, .timeline button", "borderBottomColor");
      const two = getComputedStyle(document.querySelector(".timeline .two")).backgroundImage;
      const stripes = two.match(/rgba?\\([^)]*\\)/g).map(rgba);
      pairs.push(["stripes", stripes.at(0), [stripes.at(-1)]], ["stripes", stripes.at(0),
        layers(document.getElementById("timeline").parentElement)]);
      return pairs;
    }})()""")
    assert {name for name, *_ in found} >= {"stripes", ".mark.heat"}
    assert len(found) >= 3 * FRAMES
    for name, colour, layers in found:
        below = backdrop(layers)
        assert contrast(over(colour, below), below) >= 3, (name, colour, below)


def opaque(line: list[list[int]]) -> list[tuple[int, ...]]:
    """The colours of the mark among RGBA pixels; a round rim is not wholly opaque."""
    return [tuple(pixel[:3]) for pixel in line if pixel[3] > 200]


def test_marks_in_the_frames_stand_out_from_any_picture(
    browser: Chromium, pages: dict[str, Path]
) -> None:
    show(browser, pages["short"])
    browser.evaluate("byId('heat').click()")
    kept = select_in_stages(SCORES, RETENTION, TOP_P, "specvlm", (FRAMES, ROWS, COLUMNS))
    cells = [cell for frame in browser.evaluate(PIXELS) for cell in frame]
    fills = []
    for tokens in (kept.stage_one, kept.stage_two):
        for token in tokens:
            pixels = opaque(cells[token]["line"])
            # From the outside: a dark rim, a light rim, the stage's colour.
            colours = list(dict.fromkeys(c for c, d in pairwise(pixels) if c == d))
            assert contrast(colours[0], colours[1]) >= 7, colours
            assert contrast(colours[1], colours[2]) >= 3, colours
            fills.append(colours[2])
    assert len(set(fills)) == 2
    bare = set(range(60)) - {*kept.stage_one.tolist(), *kept.stage_two.tolist()}
    assert all(pixel[3] == 0 for token in bare for pixel in cells[token]["line"])


def test_marks_of_a_fine_grid_keep_a_dark_and_a_light_rim(
    browser: Chromium, pages: dict[str, Path]
) -> None:
    show(browser, pages["long"], "phone")
    browser.evaluate("byId('heat').click()")
    first = PIXELS.replace("frames.map", "frames.slice(0, 2).map")
    cells = [cell for frame in browser.evaluate(first) for cell in frame]
    marks = [pixels for cell in cells if (pixels := opaque(cell["line"]))]
    assert len(marks) > 100
    for pixels in marks:
        light = max(range(len(pixels)), key=lambda i: luminance(pixels[i]))
        assert contrast(pixels[light], min(pixels, key=luminance)) >= 7, pixels
        assert contrast(pixels[light], pixels[light + 1]) >= 3, pixels


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
    low, high = browser.evaluate(f"""(() => {{ {COLOURS}
      const swatch = getComputedStyle(document.querySelector(".mark.heat")).backgroundImage;
      return swatch.match(/rgba?\\([^)]*\\)/g).map(rgba);
    }})()""")
    assert contrast(low, high) >= 3


def test_bars_and_marks_stay_in_forced_colours(browser: Chromium, pages: dict[str, Path]) -> None:
    show(browser, pages["short"], forced_colors="active")
    assert browser.evaluate("matchMedia('(forced-colors: active)').matches")
    bar, stripes, mark, below = browser.evaluate(f"""(() => {{ {COLOURS}
      const style = (selector) => getComputedStyle(document.querySelector(selector));
      return [rgba(style(".timeline .one").backgroundColor),
        style(".timeline .two").backgroundImage, rgba(style(".mark.one").backgroundColor),
        layers(document.getElementById("timeline"))];
    }})()""")
    assert stripes.startswith("repeating-linear-gradient")
    for colour in (bar, mark):
        assert contrast(over(colour, backdrop(below)), backdrop(below)) >= 3


def test_stages_and_authors_differ_by_more_than_colour(
    browser: Chromium, pages: dict[str, Path]
) -> None:
    show(browser, pages["short"])
    one, two, drafted, own = browser.evaluate("""
      [".timeline .one", ".timeline .two", "#answer .drafted", "#answer .own"].map((selector) => {
        const style = getComputedStyle(document.querySelector(selector));
        return [style.backgroundImage === "none", style.fontWeight, style.borderBottomStyle];
      })""")
    assert [one[0], two[0]] == [True, False]
    assert drafted[1:] != own[1:]
    assert (drafted[1] != own[1], drafted[2] != own[2]) == (True, True)
