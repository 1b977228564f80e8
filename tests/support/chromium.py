"""A headless Chromium driven over the DevTools protocol, through a pipe: no port, no network."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--mute-audio"),
    *("--disable-background-networking", "--disable-component-update", "--disable-quic"),
    *("--disable-sync", "--remote-debugging-pipe"),
)
_KEYS = {
    "Tab": 9,
    "Enter": 13,
    "Escape": 27,
    "End": 35,
    "Home": 36,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
    " ": 32,
}
"""Keys that `Chromium.press` knows, with their Windows key codes, which the protocol wants."""
_TEXT = {"Enter": "\r", " ": " "}


def find_chromium() -> str | None:
    """Path of an installed Chromium or Chrome, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for name in names if (path := shutil.which(name))), None)


class ChromiumError(RuntimeError):
    """The browser did not answer in time, refused a command, or a page's script failed."""


class Chromium:
    """Context manager around one browser with one page; its processes never outlive it.

    Parameters
    ----------
    executable
        As from `find_chromium`.
    seconds
        Deadline of each command.
    """

    def __init__(self, executable: str, *, seconds: float = 60.0) -> None:
        self._executable = executable
        self._seconds = seconds
        self._next_id = 0
        self._buffer = b""
        self._page: str | None = None
        self.events: list[dict[str, Any]] = []
        """What the page reported since the last `open`, oldest first."""
        self.pid = 0
        """Process id of the browser, which leads a session with all its processes."""

    def __enter__(self) -> Self:
        self._profile = tempfile.TemporaryDirectory(
            prefix="chromium-profile-", ignore_cleanup_errors=True
        )
        # Above 9, so that moving one end to descriptor 3 or 4 cannot close the other.
        ends = [(_raised(read), _raised(write)) for read, write in (os.pipe(), os.pipe())]
        (child_in, self._out), (self._in, child_out) = ends
        self._log = Path(self._profile.name) / "chromium.log"
        self.pid = os.posix_spawn(
            self._executable,
            [self._executable, *_FLAGS, f"--user-data-dir={self._profile.name}", "about:blank"],
            {**os.environ},
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, str(self._log), os.O_WRONLY | os.O_CREAT, 0o600),
                (os.POSIX_SPAWN_DUP2, child_in, 3),
                (os.POSIX_SPAWN_DUP2, child_out, 4),
            ],
            setsid=True,
        )
        os.close(child_in)
        os.close(child_out)
        try:
            target = self.send("Target.createTarget", url="about:blank")["targetId"]
            attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
            self._page = attached["sessionId"]
            for domain in ("Page", "Runtime", "Network", "Accessibility", "DOM"):
                self.send(f"{domain}.enable")
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        members = [
            process for process in psutil.process_iter() if _session(process.pid) == self.pid
        ]
        # The browser ends by itself when its pipe closes; whatever does not is killed.
        os.close(self._out)
        os.close(self._in)
        psutil.wait_procs([one for one in members if one.pid != self.pid], timeout=5)
        for process in members:
            if _session(process.pid) == self.pid:
                os.kill(process.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        self._profile.cleanup()

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command to the page, before there is one to the browser, and return its result.

        Raises
        ------
        ChromiumError
            A refusal, or no answer within the deadline.
        """
        self._next_id += 1
        message = {"id": self._next_id, "method": method, "params": parameters}
        if self._page is not None:
            message["sessionId"] = self._page
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + self._seconds
        while True:
            answer = self._receive(deadline, method)
            if answer.get("id") == self._next_id:
                break
            self.events.append(answer)
        if "error" in answer:
            raise ChromiumError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _receive(self, deadline: float, waiting_for: str) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            left = deadline - time.monotonic()
            ready = select.select([self._in], [], [], max(left, 0.0))[0]
            part = os.read(self._in, 1 << 20) if ready else b""
            if not part:
                why = "closed its pipe" if ready else f"sent nothing in {self._seconds:g} s"
                log = self._log.read_text(errors="replace")[-2000:]
                raise ChromiumError(f"Chromium {why} ({waiting_for}); its log ends with\n{log}")
            self._buffer += part
        message, self._buffer = self._buffer.split(b"\0", 1)
        parsed: dict[str, Any] = json.loads(message)
        return parsed

    def open(self, file: Path) -> None:
        """Load a file and wait for its load event.

        Raises
        ------
        ChromiumError
            Also where a script of the page threw while it loaded.
        """
        self.events.clear()
        self.send("Page.navigate", url=file.as_uri())
        deadline = time.monotonic() + self._seconds
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive(deadline, "load event"))
        self.raise_script_errors()

    def raise_script_errors(self) -> None:
        """Raise `ChromiumError` if a script of the page threw since the last `open`."""
        for event in self.events:
            if event["method"] == "Runtime.exceptionThrown":
                raise ChromiumError(json.dumps(event["params"]["exceptionDetails"])[:2000])

    def look(
        self,
        width: int,
        height: int,
        *,
        scale: float = 1.0,
        mobile: bool = False,
        font_size: int = 16,
        **features: str,
    ) -> None:
        """Set the viewport in CSS pixels, the default font size, and media features.

        Parameters
        ----------
        width, height, scale
            Of the screen; ``scale`` device pixels a CSS pixel.
        mobile
            Whether to lay pages out as a phone does, with touch.
        font_size
            The browser's default, in CSS pixels: 32 is 200 % text zoom.
        features
            Such as ``prefers_color_scheme="dark"``; those not named are back at their defaults.
        """
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=mobile,
        )
        self.send("Emulation.setTouchEmulationEnabled", enabled=mobile)
        self.send("Page.setFontSizes", fontSizes={"standard": font_size, "fixed": font_size - 3})
        named = [{"name": k.replace("_", "-"), "value": v} for k, v in features.items()]
        self.send("Emulation.setEmulatedMedia", media="", features=named)

    def evaluate(self, script: str, **arguments: Any) -> Any:
        """Value of a JavaScript expression in the page; ``arguments`` are names that it may use.

        Raises
        ------
        ChromiumError
            The script threw.
        """
        names = ", ".join(arguments)
        values = ", ".join(json.dumps(value) for value in arguments.values())
        answer = self.send(
            "Runtime.evaluate",
            expression=f"(({names}) => ({script}))({values})",
            returnByValue=True,
            awaitPromise=True,
        )
        if "exceptionDetails" in answer:
            raise ChromiumError(json.dumps(answer["exceptionDetails"])[:2000])
        return answer["result"].get("value")

    def press(self, key: str, *, shift: bool = False) -> None:
        """Press and release a key by its DOM name, or the space bar by ``" "``."""
        common = {
            "key": key,
            "code": "Space" if key == " " else key,
            "windowsVirtualKeyCode": _KEYS[key],
            "modifiers": 8 if shift else 0,
        }
        text = {"text": _TEXT[key]} if key in _TEXT else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", **common, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def tap(self, x: float, y: float) -> None:
        """Tap with one finger; CSS pixels from the viewport's upper left corner."""
        self.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        self.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def accessibility_tree(self) -> list[Mapping[str, Any]]:
        """What a screen reader gets, in reading order: nodes that are not ignored.

        Each has ``role`` and ``name`` (str) and its further properties by name.
        """
        nodes = self.send("Accessibility.getFullAXTree")["nodes"]
        by_id = {node["nodeId"]: node for node in nodes}
        found: list[Mapping[str, Any]] = []

        def visit(node: Mapping[str, Any]) -> None:
            if not node["ignored"]:
                properties = {
                    one["name"]: one["value"].get("value") for one in node.get("properties", ())
                }
                role, name = (node.get(k, {}).get("value", "") for k in ("role", "name"))
                value = node.get("value", {}).get("value")
                found.append({**properties, "role": role, "name": name, "value": value})
            for child in node.get("childIds", ()):
                if child in by_id:
                    visit(by_id[child])

        visit(nodes[0])
        return found

    def screenshot(self, file: Path) -> None:
        """Write the whole page as a PNG."""
        taken = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(taken["data"]))


def _raised(descriptor: int) -> int:
    raised = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return raised


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None
