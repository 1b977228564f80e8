"""The page in a real Chromium: layout, keys, touch, contrast and what a screen reader gets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reference.selection import POLICIES, select_in_stages
from tests.support.chromium import Chromium, ChromiumError, find_chromium
from tests.support.server import session_processes
from tests.visualize.example import GRID, RETENTION, SCORES, TOP_P, make_page

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
    "small-phone": Look(320, 568, {"scale": 2.0, "mobile": True}),
    "tablet": Look(768, 1024, {"scale": 2.0, "mobile": True}),
    "desktop": Look(1280, 800),
    "phone-large-text": Look(390, 844, {"scale": 3.0, "mobile": True, "font_size": 32}),
    "small-phone-large-text": Look(320, 568, {"scale": 2.0, "mobile": True, "font_size": 32}),
    "desktop-large-text": Look(1280, 800, {"font_size": 32}),
}
EVERY_LOOK = pytest.mark.parametrize("name", LOOKS)
SCHEMES = pytest.mark.parametrize("scheme", ["light", "dark"])


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    executable = find_chromium()
    if executable is None:
        pytest.skip("no chromium on this machine to open the page with")
    with Chromium(executable) as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(clip_paths: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A short page, a long one with fine grids and unbroken words, one without scores, and one
    of a policy that the page cannot compute."""
    folder = tmp_path_factory.mktemp("pages")
    long_scores = np.random.default_rng(3).random(int(np.prod(LONG_GRID))) ** 8
    made = {
        "short": make_page(clip_paths[0]),
        "long": make_page(
            clip_paths[1],
            grid=LONG_GRID,
            scores=[float(f"{score:.3g}") for score in long_scores],
            question="What-happens-" * 40,
            tokens=["Unbroken" * 20, " words", "\n\nand", " a", " new", " line"],
            numbers=[("draft KV of the prompt", "19% of full"), ("no draft", "pool_full_" * 12)],
        ),
        "unscored": make_page(clip_paths[2], scores=None, policy="uniform"),
        "own-policy": make_page(
            clip_paths[3],
            policy="frame-peaks",
            stage_one=[0, 17],
            stage_two=[59],
        ),
    }
    files = {}
    for name, text in made.items():
        files[name] = folder / f"{name}.html"
        files[name].write_text(text, encoding="utf-8")
    return files


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


PIXELS = """frames.map(({ canvas }) => Array.from({ length: area }, (_, cell) => {
  const at = (x, y) => [...canvas.getContext("2d").getImageData(x, y, 1, 1).data];
  const left = (cell % columns) * CELL, top = Math.floor(cell / columns) * CELL;
  const middle = Math.floor(top + CELL / 2);
  return { corner: at(left + 2, top + 2),
    line: Array.from({ length: Math.floor(CELL / 2) }, (_, x) => at(left + x, middle)) };
}))"""


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


STOPS = ["summary", "retention", "policy", "heat", "reset", "bar 0"]


@SCHEMES
@pytest.mark.parametrize("name", ["phone", "desktop"])
def test_tab_goes_through_every_control_once_with_a_visible_ring(
    browser: Chromium, pages: dict[str, Path], name: str, scheme: str
) -> None:
    show(browser, pages["short"], name, prefers_color_scheme=scheme)
    around = browser.evaluate(f"""(() => {{ {COLOURS}
      return layers(document.getElementById("reset").parentElement); }})()""")
    seen = []
    for _ in STOPS:
        browser.press("Tab")
        at = browser.evaluate(FOCUSED)
        ring = browser.evaluate(f"(() => {{ {COLOURS} return rgba(c); }})()", c=at["ringColour"])
        assert at["ring"] >= 2, at
        assert at["seen"], at
        assert contrast(ring, backdrop(around)) >= 3, at
        seen.append(at["name"])
    assert seen == STOPS
    browser.press("Tab")
    assert focused(browser) not in STOPS[1:], "the last stop holds the focus"
    focus(browser, "#timeline button")
    back = []
    for _ in STOPS[1:]:
        browser.press("Tab", shift=True)
        back.append(focused(browser))
    assert back == STOPS[-2::-1]
    assert browser.evaluate("[...document.querySelectorAll('*')].every((at) => at.tabIndex <= 0)")


def test_the_slider_obeys_arrows_home_and_end(browser: Chromium, pages: dict[str, Path]) -> None:
    show(browser, pages["short"])
    focus(browser, "#retention")
    seen = []
    for key in ("ArrowRight", "ArrowUp", "ArrowLeft", "End", "ArrowDown", "Home"):
        browser.press(key)
        seen.append((text_of(browser, "share"), text_of(browser, "summary")))
    shares = (21, 22, 21, 100, 99, 1)
    assert seen == [(f"{share} %", summary(share / 100)) for share in shares]


def test_policy_heat_map_and_reset_work_by_keys(browser: Chromium, pages: dict[str, Path]) -> None:
    show(browser, pages["short"])
    focus(browser, "#policy")
    for policy in POLICIES[1:4]:
        browser.press("ArrowDown")
        assert browser.evaluate("byId('policy').value") == policy
        assert text_of(browser, "summary") == summary(RETENTION, policy)
    browser.press("Tab")
    before = browser.evaluate(PIXELS)
    browser.press(" ")
    after = browser.evaluate(PIXELS)
    assert before[0][0]["corner"][3] > 0
    assert after[0][0]["corner"][3] == 0
    browser.press("Tab")
    browser.press("Enter")
    assert text_of(browser, "summary") == summary(RETENTION)
    assert browser.evaluate("byId('policy').value") == "specvlm"


@pytest.mark.parametrize("name", ["phone", "desktop"])
def test_bars_lead_to_frames_and_escape_leads_back(
    browser: Chromium, pages: dict[str, Path], name: str
) -> None:
    show(browser, pages["long"], name)
    focus(browser, "#timeline button")
    last = LONG_GRID[0] - 1
    for key, expected in (
        ("ArrowLeft", "bar 0"),
        ("ArrowRight", "bar 1"),
        ("End", f"bar {last}"),
        ("ArrowRight", f"bar {last}"),
        ("ArrowLeft", f"bar {last - 1}"),
        ("Enter", f"frame {last - 1}"),
        ("Escape", f"bar {last - 1}"),
        ("Home", "bar 0"),
        (" ", "frame 0"),
    ):
        browser.press(key)
        at = browser.evaluate(FOCUSED)
        assert at["name"] == expected, key
        assert at["ring"] >= 2, key
        assert at["seen"], key


def test_all_bars_are_one_tab_stop_that_remembers_its_place(
    browser: Chromium, pages: dict[str, Path]
) -> None:
    show(browser, pages["short"])
    stops = "frames.filter(({ bar }) => bar.tabIndex === 0).map(({ number }) => number)"
    assert browser.evaluate(stops) == [0]
    focus(browser, "#timeline button")
    browser.press("ArrowRight")
    browser.press("ArrowRight")
    assert browser.evaluate(stops) == [2]
    browser.press("Tab", shift=True)
    assert focused(browser) == "reset"
    browser.press("Tab")
    assert focused(browser) == "bar 2"


def test_a_finger_moves_the_slider_and_opens_a_frame(
    browser: Chromium, pages: dict[str, Path]
) -> None:
    show(browser, pages["short"], "phone")

    def box(selector: str) -> tuple[float, float, float, float]:
        x, y, width, height = browser.evaluate(
            """(() => { const at = document.querySelector(selector);
              at.scrollIntoView({ block: "center" });
              const { x, y, width, height } = at.getBoundingClientRect();
              return [x, y, width, height]; })()""",
            selector=selector,
        )
        return x, y, width, height

    x, y, width, _ = box("#retention")
    # Near the upper edge of its box, far off the thin track.
    browser.tap(x + width / 2, y + 6)
    share = browser.evaluate("byId('retention').valueAsNumber")
    assert 45 <= share <= 55
    assert text_of(browser, "summary") == summary(share / 100)
    x, y, width, _ = box("#timeline button:nth-child(3)")
    # Above the bar itself: the whole column is the target.
    browser.tap(x + width / 2, y + 4)
    at = browser.evaluate(FOCUSED)
    assert at["name"] == "frame 2"
    assert at["ring"] >= 2
    assert at["seen"]


def test_a_screen_reader_finds_landmarks_headings_and_named_controls(
    browser: Chromium, pages: dict[str, Path]
) -> None:
    show(browser, pages["short"])
    tree = browser.accessibility_tree()
    assert tree[0]["name"] == "SpecVLM: what the draft saw"
    assert browser.evaluate("document.documentElement.lang") == "en"
    assert sum(node["role"] == "main" for node in tree) == 1
    headings = [(node["level"], node["name"]) for node in tree if node["role"] == "heading"]
    assert headings == [
        (1, "What the draft saw"),
        (2, "The answer, token by token"),
        (2, "Video tokens kept for the draft"),
        (3, "Over time"),
        (3, "Frame by frame"),
    ]
    regions = [node["name"] for node in tree if node["role"] == "region"]
    assert regions == ["The answer, token by token", "Video tokens kept for the draft"]
    controls = [
        (node["role"], node["name"])
        for node in tree
        if node.get("focusable") and node["role"] not in ("RootWebArea", "figure", "option")
    ]
    kept = stages()
    times = browser.evaluate("data.frames.map((frame) => frame.time.toFixed(1))")
    assert controls == [
        ("DisclosureTriangle", "The same as a table, round by round"),
        ("slider", "Kept share"),
        ("combobox", "Policy"),
        ("checkbox", "Heat map"),
        ("button", "As served"),
        *(
            ("button", f"Show the frame at {time} s: {one} tokens of Stage I and {two} of "
             f"Stage II kept out of {AREA}")
            for time, (one, two) in zip(times, kept, strict=True)
        ),
    ]  # fmt: skip
    slider = next(node for node in tree if node["role"] == "slider")
    assert slider["valuetext"] == "20 %"
    assert [node["name"] for node in tree if node["role"] == "toolbar"] == ["Over time"]


def test_a_screen_reader_hears_changes_once(browser: Chromium, pages: dict[str, Path]) -> None:
    show(browser, pages["short"])
    live = browser.evaluate("""[...document.querySelectorAll("[aria-live], output, [role=status]")]
      .map((at) => [at.id, at.getAttribute("aria-live")])""")
    assert sorted(live) == [["share", "off"], ["summary", "polite"]]


def test_frames_say_their_time_kept_tokens_and_attention(
    browser: Chromium, pages: dict[str, Path]
) -> None:
    show(browser, pages["short"])
    focus(browser, "#retention")
    browser.press("End")
    browser.press("ArrowLeft")
    tree = browser.accessibility_tree()
    times = browser.evaluate("data.frames.map((frame) => frame.time.toFixed(1))")
    shares = np.reshape(SCORES, (FRAMES, AREA)).sum(axis=1) / sum(SCORES)
    alts = [node["name"] for node in tree if node["name"].startswith("Frame at")]
    assert alts == [
        f"Frame at {time} s: {one} tokens of Stage I and {two} of Stage II kept out of {AREA}, "
        f"attention {100 * share:.0f} %"
        for time, (one, two), share in zip(times, stages(0.99), shares, strict=True)
    ]
    assert browser.evaluate("[...document.images].map((image) => image.alt)") == alts
    assert not any(node["role"] == "Canvas" for node in tree)
    captions = [node["name"] for node in tree if node["role"] == "figure"]
    assert captions == [
        f"{time} s Stage I: {one} Stage II: {two} attention {100 * share:.0f} %"
        for time, (one, two), share in zip(times, stages(0.99), shares, strict=True)
    ]


def test_the_answer_reads_as_text_with_its_authors_told_apart(
    browser: Chromium, pages: dict[str, Path]
) -> None:
    show(browser, pages["short"])
    assert text_of(browser, "answer") == "A red disc moves. Then"
    authors = browser.evaluate(
        "[...document.querySelectorAll('#answer mark, #answer strong')]"
        ".map((at) => [at.localName, at.textContent])"
    )
    assert authors == [
        ["strong", "A"],
        ["mark", "red disc"],
        ["strong", "moves"],
        ["strong", "."],
        ["mark", "Then"],
    ]
    roles = {node["role"] for node in browser.accessibility_tree()}
    assert {"mark", "strong"} <= roles


def test_the_table_of_rounds_has_a_caption_and_headers(
    browser: Chromium, pages: dict[str, Path]
) -> None:
    show(browser, pages["short"])
    focus(browser, "summary")
    browser.press("Enter")
    tree = browser.accessibility_tree()
    assert [node["name"][:16] for node in tree if node["role"] == "table"] == ["Each verify roun"]
    regions = [node["name"] for node in tree if node["role"] == "region"]
    assert regions[1].startswith("Each verify round"), "the box of a table that may scroll"
    by_role = {
        role: [node["name"] for node in tree if node["role"] == role]
        for role in ("columnheader", "rowheader", "cell")
    }
    assert by_role == {
        "columnheader": ["Round", "Accepted from the draft", "The target's own"],
        "rowheader": ["prefill", "1", "2", "3"],
        "cell": ["(0)", "A", "red disc (2)", "moves", "(0)", ".", "Then (1)", "(the answer ended)"],
    }
    browser.press("Tab")
    assert browser.evaluate("document.activeElement.className") == "wide"
    browser.press("Tab")
    assert focused(browser) == "retention"


def test_slider_policy_and_reset_recompute_the_selection(
    browser: Chromium, pages: dict[str, Path]
) -> None:
    show(browser, pages["short"])

    def choose(name: str, value: str, event: str) -> str:
        browser.evaluate(
            "(byId(name).value = value, byId(name).dispatchEvent(new Event(event)))",
            name=name,
            value=value,
            event=event,
        )
        return text_of(browser, "summary")

    assert text_of(browser, "summary") == summary(RETENTION)
    assert choose("retention", "50", "input") == summary(0.5)
    for policy in POLICIES:
        if policy != "random":
            assert choose("policy", policy, "change") == summary(0.5, policy)
    browser.evaluate("byId('reset').click()")
    assert text_of(browser, "summary") == summary(RETENTION)


def test_a_page_without_scores_has_no_heat_map(browser: Chromium, pages: dict[str, Path]) -> None:
    show(browser, pages["unscored"])
    names = [node["name"] for node in browser.accessibility_tree()]
    assert "Heat map" not in names
    assert not any("attention of the question" in name for name in names)
    assert all(cell["corner"][3] == 0 for frame in browser.evaluate(PIXELS) for cell in frame)
    assert "12 of 60" in text_of(browser, "summary")


def test_no_process_outlives_its_browser() -> None:
    executable = find_chromium()
    if executable is None:
        pytest.skip("no chromium on this machine to start")
    browser = Chromium(executable)
    with pytest.raises(ChromiumError, match=r"No\.Such"), browser:
        browser.send("No.Such")
    assert browser.pid > 0
    assert session_processes(browser.pid) == []


def test_a_policy_that_the_page_cannot_compute_is_shown_as_served(
    browser: Chromium, pages: dict[str, Path]
) -> None:
    show(browser, pages["own-policy"])
    served = "3 of 60 video tokens kept: 2 in Stage I, 1 in Stage II."
    assert text_of(browser, "summary") == served
    assert browser.evaluate("byId('policy').value") == "frame-peaks"
    assert browser.evaluate("byId('retention').disabled")
    captions = [n["name"] for n in browser.accessibility_tree() if n["role"] == "figure"]
    kept = [(1, 0), (1, 0), (0, 0), (0, 1)]
    assert all(
        f"Stage I: {one} Stage II: {two}" in caption
        for caption, (one, two) in zip(captions, kept, strict=True)
    )
    focus(browser, "#policy")
    browser.press("ArrowUp")
    assert browser.evaluate("byId('policy').value") == "none"
    assert text_of(browser, "summary") == summary(RETENTION, "none")
    focus(browser, "#retention")
    browser.press("End")
    assert text_of(browser, "share") == "100 %"
    focus(browser, "#policy")
    browser.press("ArrowDown")
    assert text_of(browser, "summary") == served
    assert text_of(browser, "share") == f"{100 * RETENTION:.0f} %"


def test_nothing_moves_by_itself(browser: Chromium, pages: dict[str, Path]) -> None:
    show(browser, pages["short"], prefers_reduced_motion="reduce")
    assert browser.evaluate("matchMedia('(prefers-reduced-motion: reduce)').matches")
    moving = browser.evaluate("""[...document.querySelectorAll("*")].filter((at) => {
      const style = getComputedStyle(at);
      return style.animationName !== "none" || style.transitionDuration !== "0s"
        || style.scrollBehavior !== "auto";
    }).length""")
    assert moving == 0


def test_the_browser_asks_the_network_for_nothing(
    browser: Chromium, pages: dict[str, Path]
) -> None:
    show(browser, pages["short"])
    browser.evaluate("byId('reset').click()")
    asked = [
        event["params"]["request"]["url"]
        for event in browser.events
        if event["method"] == "Network.requestWillBeSent"
    ]
    assert pages["short"].as_uri() in asked
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    browser.raise_script_errors()
