"""Colours: the matrix and range that a file states are those it is converted by."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from av.video.reformatter import ColorPrimaries, ColorRange, ColorTrc

from specvlm_sglang.host.media.reader import PyAVReader

# Luma weights of red and blue.
MATRICES = {"bt709": (1, 0.2126, 0.0722), "bt601": (5, 0.299, 0.114), "bt2020": (9, 0.2627, 0.0593)}
COLOURS = [(200, 60, 40), (30, 180, 90), (60, 70, 200), (128, 128, 128), (240, 240, 20)]


def encoded(rgb: tuple[int, int, int], weights: tuple[float, float], bits: int, full: bool) -> list:
    """Y, Cb, Cr of a colour, by the definition of the matrices."""
    red, green, blue = (value / 255 for value in rgb)
    of_red, of_blue = weights
    luma = of_red * red + (1 - of_red - of_blue) * green + of_blue * blue
    chroma = [(blue - luma) / (2 - 2 * of_blue), (red - luma) / (2 - 2 * of_red)]
    scale, top = 1 << (bits - 8), (1 << bits) - 1
    if full:
        return [round(luma * top), *(round(c * top + (1 << (bits - 1))) for c in chroma)]
    return [
        round((16 + 219 * luma) * scale),
        *(round((128 + 224 * c) * scale) for c in chroma),
    ]


def write_colours(path: Path, matrix: str, bits: int, full: bool, hdr: bool) -> Path:
    number, *weights = MATRICES[matrix]
    kind = np.uint16 if bits > 8 else np.uint8
    with av.open(str(path), "w") as file:
        stream = file.add_stream("ffv1", rate=25)
        stream.width, stream.height = 32, 16
        stream.pix_fmt = "yuv444p10le" if bits == 10 else "yuv444p"
        context = stream.codec_context
        context.colorspace, context.color_range = number, 2 if full else 1
        if hdr:
            context.color_trc, context.color_primaries = ColorTrc.SMPTE2084, ColorPrimaries.BT2020
        for rgb in COLOURS:
            planes = np.ones((3, 16, 32), kind)
            planes *= np.array(encoded(rgb, tuple(weights), bits, full), kind)[:, None, None]
            frame = av.VideoFrame(32, 16, stream.pix_fmt)
            for plane, values in zip(frame.planes, planes, strict=True):
                row = np.zeros((16, plane.line_size // values.itemsize), kind)
                row[:, :32] = values
                plane.update(row.tobytes())
            frame.colorspace, frame.color_range = number, ColorRange(2 if full else 1)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return path


@pytest.mark.parametrize("hdr", [False, True], ids=["sdr", "PQ"])
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("bits", [8, 10])
@pytest.mark.parametrize("matrix", MATRICES)
def test_colours_come_back_by_the_files_own_matrix_and_range(
    matrix: str, bits: int, full: bool, hdr: bool, tmp_path: Path
) -> None:
    path = write_colours(tmp_path / "a.mkv", matrix, bits, full, hdr)
    frames = PyAVReader(str(path)).get_batch(range(len(COLOURS))).frames
    # No tone mapping: PQ's code values are what stands in the file.
    difference = np.abs(frames[:, 4, 4].astype(int) - np.array(COLOURS)).max()
    assert difference <= 3
