"""The page in a real Chromium: keys, touch, what a screen reader gets, and what it computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from reference.selection import POLICIES
from specvlm_sglang.tools.server import session_processes
from specvlm_sglang.tools.visualize.page import computed_policies
from tests.support.chromium import Chromium, ChromiumError, find_chromium
from tests.tools.visualize.browsing import (
    AREA,
    COLOURS,
    FOCUSED,
    FRAMES,
    LONG_GRID,
    PIXELS,
    SCHEMES,
    backdrop,
    contrast,
    focus,
    focused,
    show,
    stages,
    summary,
    text_of,
)
from tests.tools.visualize.example import RETENTION, SCORES

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
    for policy in computed_policies():
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
