"""Videos that say how they are to be turned are read as they are shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from specvlm_sglang.host.media import orientation
from specvlm_sglang.host.media.orientation import UPRIGHT, Orientation
from specvlm_sglang.host.media.reader import PyAVReader
from tests.support import numbered

TURNS = [(degrees, flip) for degrees in (0, 90, 180, 270) for flip in ("", "hflip", "vflip")]


def shown(picture: np.ndarray, degrees: int, flip: str) -> np.ndarray:
    """A picture turned counter-clockwise, then mirrored; by NumPy's own functions."""
    turned = np.rot90(picture, degrees // 90)
    if flip:
        turned = turned[:, ::-1] if flip == "hflip" else turned[::-1]
    return np.ascontiguousarray(turned)


def stored(number: int, degrees: int, flip: str) -> np.ndarray:
    """What must be stored for ``number`` to stand upright when it is shown."""
    picture = numbered.draw(number)
    if flip:
        picture = picture[:, ::-1] if flip == "hflip" else picture[::-1]
    return np.ascontiguousarray(np.rot90(picture, -(degrees // 90)))


def write_turned(path: Path, degrees: int, flip: str, frames: int = 8) -> Path:
    import av

    flips = {flip: True} if flip else {}
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=25, options={"g": "4", "bf": "0"})
        stream.height, stream.width = stored(0, degrees, flip).shape[:2]
        stream.pix_fmt = "yuv420p"
        if degrees or flip:
            stream.set_display_rotation(degrees, **flips)
        for number in range(frames):
            picture = av.VideoFrame.from_ndarray(stored(number, degrees, flip), format="rgb24")
            file.mux(stream.encode(picture))
        file.mux(stream.encode())
    return path


@pytest.mark.parametrize(("degrees", "flip"), TURNS)
@pytest.mark.parametrize("suffix", ["mp4", "mov"])
def test_a_phones_video_stands_upright(
    suffix: str, degrees: int, flip: str, tmp_path: Path
) -> None:
    reader = PyAVReader(str(write_turned(tmp_path / f"a.{suffix}", degrees, flip)))
    assert (reader.height, reader.width) == (numbered.HEIGHT, numbered.WIDTH)
    frames = reader.get_batch([0, 3, 7]).frames
    assert frames.shape == (3, numbered.HEIGHT, numbered.WIDTH, 3)
    assert numbered.read_all(frames) == [0, 3, 7]


# How EXIF numbers the eight orientations, and the display matrix of each.
EXIF = {
    1: (1, 0, 0, 1),
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}


@pytest.mark.parametrize("number", EXIF)
def test_the_eight_matrices_do_what_pillow_does_for_exif(number: int) -> None:
    from PIL import ImageOps

    picture = np.random.default_rng(number).integers(0, 256, (4, 6, 3), np.uint8)
    image = Image.fromarray(picture)
    image.getexif()[0x0112] = number
    expected = np.asarray(ImageOps.exif_transpose(image))
    unit = 1 << 16
    turn = orientation.of_matrix(*(unit * entry for entry in EXIF[number]))
    found = turn.apply(picture)
    np.testing.assert_array_equal(found, expected)
    assert found.flags.c_contiguous
    assert turn.shape(4, 6) == found.shape[:2]


def test_a_slanted_matrix_becomes_the_nearest_right_angle_and_zeros_become_none() -> None:
    assert orientation.of_matrix(100, 5, -5, 100) == UPRIGHT
    assert orientation.of_matrix(5, 100, -100, 5) == Orientation(True, False, True)
    assert orientation.of_matrix(0, 0, 0, 0) == UPRIGHT


def test_an_upright_picture_is_not_copied() -> None:
    picture = np.zeros((2, 2, 3), np.uint8)
    assert UPRIGHT.apply(picture) is picture


def test_side_data_of_another_kind_turn_nothing() -> None:
    class Frame:
        side_data: tuple[Any, ...] = ()

    assert orientation.of_frame(Frame()) == UPRIGHT
