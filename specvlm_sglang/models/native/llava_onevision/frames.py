"""Which frames of a video file the model sees.

SGLang's rule for the Qwen-VL models (``smart_nframes``) without their pairing of frames: so many
per second within limits, evenly from the first frame to the last. The upper limit is what
LLaVA-OneVision was trained with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class FrameSampling:
    """Settings of one server or one request.

    Attributes
    ----------
    fps : float
        Frames per second of video.
    min_frames, max_frames : int
        Limits on what `fps` gives; never more than the file has.
    nframes : int, optional
        So many frames, whatever the length.
    """

    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 32
    nframes: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "nframes" and value is None:
                continue
            whole = field.name != "fps"
            if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
                kind = "an integer" if whole else "a number"
                raise ValueError(f"video setting {field.name}={value!r} must be {kind}")
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"video setting {field.name}={value!r} must be above 0")
        if self.min_frames > self.max_frames:
            raise ValueError(
                f"video setting min_frames={self.min_frames} must be at most "
                f"max_frames={self.max_frames}"
            )

    def with_settings(self, settings: Mapping[str, Any] | None) -> FrameSampling:
        """Return these settings with some replaced, those of a request for instance.

        Keys with a leading underscore are SGLang's own notes and ignored; so is None. A new
        `max_frames` takes a larger `min_frames` down with it.

        Raises
        ------
        ValueError
            An unknown setting, a value out of range, or `fps` together with `nframes`.
        """
        given = {
            key: value
            for key, value in (settings or {}).items()
            if value is not None and not key.startswith("_")
        }
        known = [field.name for field in fields(self)]
        unknown = sorted(given.keys() - set(known))
        if unknown:
            raise ValueError(
                f"video setting {unknown[0]!r} is not one of {', '.join(known)}: LLaVA-OneVision "
                "resizes every frame to the vision tower's square"
            )
        if "nframes" in given and "fps" in given:
            raise ValueError("video settings fps and nframes exclude each other")
        if "fps" in given:
            given["nframes"] = None
        highest = given.get("max_frames")
        if isinstance(highest, int) and "min_frames" not in given:
            given["min_frames"] = max(1, min(self.min_frames, highest))
        return replace(self, **given)

    def indices(self, total: int, rate: float) -> list[int]:
        """Choose frames.

        Parameters
        ----------
        total
            Frames in the file, at least 1.
        rate
            Its frames per second; 0 where unknown, which gives `max_frames`.

        Returns
        -------
        list of int
            Ascending, each at most once, first and last frame included where there are two.
        """
        if self.nframes is not None:
            wanted = self.nframes
        elif rate > 0:
            wanted = min(max(int(total / rate * self.fps), self.min_frames), self.max_frames)
        else:
            wanted = self.max_frames
        spaced = np.linspace(0, total - 1, num=min(wanted, total), dtype=np.int64)
        return [int(index) for index in np.unique(spaced)]
