"""Options of a video: which frames are taken, and how large they are made.

One meaning for every family and in every place that can set them. Nearer places win: beside the
video's ``url``, the request's ``video_config``, its ``mm_processor_kwargs``, the server's
``--mm-process-config``, the family's own defaults.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

_LONGEST_SHOWN = 60


class Range(NamedTuple):
    """Values that an option may have.

    Attributes
    ----------
    whole
        Whether only integers are.
    low, high
        Limits, both inclusive; a number that is not whole must be above ``low``.
    """

    whole: bool
    low: int
    high: int

    def __str__(self) -> str:
        if self.whole:
            return f"an integer from {self.low} to {self.high}"
        return f"a number above {self.low}, at most {self.high}"

    def holds(self, value: Any) -> bool:
        """Whether ``value`` is in the range and of its type."""
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        if not math.isfinite(value) or value > self.high:
            return False
        return value >= self.low if self.whole else value > self.low


# A day at one frame a second; one token of 28 x 28 pixels to SGLang's own limit for an image; the
# 128,000 tokens that Qwen's processor plans for.
_FRAMES = Range(whole=True, low=1, high=86_400)
_PIXELS = Range(whole=True, low=28 * 28, high=16_384 * 28 * 28)
RANGES: Mapping[str, Range] = {
    "fps": Range(whole=False, low=0, high=1000),
    "nframes": _FRAMES,
    "min_frames": _FRAMES,
    "max_frames": _FRAMES,
    "min_pixels": _PIXELS,
    "max_pixels": _PIXELS,
    "total_pixels": Range(whole=True, low=28 * 28, high=128_000 * 28 * 28),
}
"""Every option and its range."""
OF_PIXELS = ("min_pixels", "max_pixels", "total_pixels")
_LIMITS = (("min_frames", "max_frames"), ("min_pixels", "max_pixels"))


@dataclass(frozen=True)
class VideoOptions:
    """Options of one place; None is not set.

    Attributes
    ----------
    fps : float, optional
        Frames per second of video, within `min_frames` and `max_frames`.
    nframes : int, optional
        So many frames, whatever the length; all of a shorter video.
    min_frames, max_frames : int, optional
        Limits on what `fps` gives; never more than the video has.
    min_pixels, max_pixels : int, optional
        Of one frame, as the model sees it.
    total_pixels : int, optional
        At most so many pixels in half of the frames, since two frames share their tokens.

    Raises
    ------
    ValueError
        A value out of its range, a minimum above its maximum, or `fps` together with `nframes`.
    """

    fps: float | None = None
    nframes: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    total_pixels: int | None = None

    def __post_init__(self) -> None:
        for name, value in self.given().items():
            if not RANGES[name].holds(value):
                raise ValueError(f"{name}={shown(value)} must be {RANGES[name]}")
        for low, high in _LIMITS:
            lowest, highest = getattr(self, low), getattr(self, high)
            if None not in (lowest, highest) and lowest > highest:
                raise ValueError(f"{low}={lowest} must be at most {high}={highest}")
        if self.fps is not None and self.nframes is not None:
            raise ValueError(f"fps={self.fps} and nframes={self.nframes} exclude each other")

    def given(self) -> dict[str, Any]:
        """Return the options that are set, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def of_pixels(self) -> bool:
        """Whether an option says how large frames are made."""
        return any(getattr(self, name) is not None for name in OF_PIXELS)

    def merged_over(self, farther: VideoOptions) -> VideoOptions:
        """Return these options, and those of ``farther`` that they leave open.

        A nearer `fps` replaces a farther `nframes` and the other way round; a nearer maximum takes
        a larger farther minimum down with it; nearer limits of frames hold for a farther `nframes`.

        Raises
        ------
        ValueError
            A nearer minimum above a farther maximum.
        """
        merged = asdict(farther)
        if self.fps is not None or self.nframes is not None:
            merged["fps"] = merged["nframes"] = None
        elif merged["nframes"] is not None:
            merged["nframes"] = max(merged["nframes"], self.min_frames or 0)
            merged["nframes"] = min(merged["nframes"], self.max_frames or merged["nframes"])
        for low, high in _LIMITS:
            highest = getattr(self, high)
            if None not in (highest, merged[low]):
                merged[low] = min(merged[low], highest)
        return VideoOptions(**{**merged, **self.given()})


NOTHING_SET = VideoOptions()
NAMES = tuple(field.name for field in fields(VideoOptions))


def read_options(
    given: Any, where: str, beside: Collection[str] = (), *, strict: bool = True
) -> VideoOptions:
    """Return the options that stand in a request or a configuration.

    Parameters
    ----------
    given
        A mapping or None. Keys that begin with an underscore are SGLang's own notes, and None is
        not set: both are passed over.
    where
        What the mapping is called in messages.
    beside
        Other keys that the mapping may have.
    strict
        Whether any other key is an error.

    Raises
    ------
    ValueError
        Not a mapping, an unknown key, what `VideoOptions` refuses, or `nframes` outside the limits
        beside it; ``where`` is named.
    """
    if given is None:
        return NOTHING_SET
    if not isinstance(given, Mapping):
        raise ValueError(f"{where}={shown(given)} must be an object")
    chosen = {
        key: value
        for key, value in given.items()
        if value is not None and not str(key).startswith("_") and key not in beside
    }
    unknown = sorted(str(key) for key in chosen.keys() - set(NAMES))
    if unknown and strict:
        raise ValueError(
            f"{where} has no field {shown(unknown[0])}; it takes {', '.join((*beside, *NAMES))}"
        )
    try:
        options = VideoOptions(**{name: chosen[name] for name in NAMES if name in chosen})
        _check_count(options)
        return options
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _check_count(options: VideoOptions) -> None:
    wanted, low, high = options.nframes, options.min_frames, options.max_frames
    if wanted is not None and low is not None and wanted < low:
        raise ValueError(f"nframes={wanted} must be at least min_frames={low}")
    if wanted is not None and high is not None and wanted > high:
        raise ValueError(f"nframes={wanted} must be at most max_frames={high}")


def options_of(request: Any, server: VideoOptions) -> VideoOptions:
    """Return what holds for the videos of SGLang's ``GenerateReqInput`` that say nothing.

    Raises
    ------
    ValueError
        From `read_options` and `VideoOptions.merged_over`.
    """
    options = server
    for name in ("mm_processor_kwargs", "video_config"):
        options = read_options(getattr(request, name, None), name).merged_over(options)
    return options


def shown(value: Any) -> str:
    """``repr`` of a client's value, cut where a message would become long."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
