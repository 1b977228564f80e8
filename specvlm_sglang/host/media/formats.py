"""Which kinds of files are opened, and that nothing else is.

FFmpeg's demuxers are more than parsers: a playlist, a session description or a concatenation
script names further files and sockets, which the demuxer opens. So the demuxer must stand in a list
of those that read their own bytes, no protocol is allowed, and each nested open is refused.
"""

from __future__ import annotations

import io
import os
import stat
from typing import Any, BinaryIO

import av

VIDEO_FORMATS = (
    *("mov", "matroska", "webm", "avi", "flv", "mpegts", "mpeg", "asf", "ogg", "mxf", "nut"),
    *("ivf", "h264", "hevc", "vvc", "av1", "obu", "m4v", "mpegvideo", "h261", "h263", "vc1"),
    *("mjpeg", "dirac", "cavsvideo", "dv", "yuv4mpegpipe", "gif", "apng", "rm", "wtv", "gxf"),
    *("swf", "nsv", "nuv", "smjpeg"),
)
"""Demuxers that read their own bytes and nothing else, by FFmpeg's names."""

SOUND_FORMATS = ("mp3", "flac", "wav", "aac", "aiff", "amr", "ac3", "eac3", "w64", "caf")
"""Opened only to say that they hold no video."""

_ONLY_BYTES = {
    "format_whitelist": ",".join((*VIDEO_FORMATS, *SOUND_FORMATS)),
    # No protocol has this name; an empty list reads as "no list" in some of FFmpeg's code.
    "protocol_whitelist": "none",
    "enable_drefs": "0",
}
_BUFFER_BYTES = 256 << 10
_HEAD_BYTES = 64
_SCRIPTS = (
    *(b"#extm3u", b"v=0", b"ffconcat", b";ffmetadata", b"[playlist]", b"rtsp", b"smil", b"<smil"),
    *(
        b"<mpd",
        b"<?xml",
        b"[reference]",
        b"<asx",
        b"<smoothstreamingmedia",
        b"http://",
        b"https://",
    ),
)
_PICTURES = (
    *(b"\x89png", b"\xff\xd8\xff", b"bm", b"ii*\0", b"mm\0*", b"8bps", b"\0\0\1\0"),
    *(b"\xff\x0a", b"\0\0\0\x0cjxl ", b"\0\0\0\x0cjp  "),
)


class _Bytes:
    """A binary file without a name: FFmpeg would read a meaning into one."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.seek, self.tell = file.read, file.seek, file.tell


def open_source(source: str | bytes) -> BinaryIO:
    """Open a path or bytes for reading.

    Raises
    ------
    FileNotFoundError
        The path does not exist.
    ValueError
        It is a directory, a pipe or a device.
    """
    if isinstance(source, bytes):
        return io.BytesIO(source)
    if not stat.S_ISREG(os.stat(source).st_mode):
        raise ValueError("the path is a directory, a pipe or a device, not a video file")
    return open(source, "rb")


def open_container(file: BinaryIO, format_name: str | None = None) -> Any:
    """Open an encoded video; no socket and no other file is ever opened for it.

    Parameters
    ----------
    file
        The encoded bytes; it is read and sought, and stays the caller's to close.
    format_name
        FFmpeg's name of the demuxer; found from the bytes where None.

    Returns
    -------
    av.container.InputContainer

    Raises
    ------
    ValueError
        A kind of file that is not read, with its kind where that is known, or a damaged one.
    """
    try:
        return av.open(
            _Bytes(file),
            mode="r",
            format=format_name,
            container_options=_ONLY_BYTES,
            io_open=_refuse,
            buffer_size=_BUFFER_BYTES,
            metadata_errors="replace",
        )
    except (av.error.FFmpegError, PermissionError, UnicodeDecodeError) as error:
        file.seek(0)
        reason = _kind_of(file.read(_HEAD_BYTES)) or _words_of(error)
        raise ValueError(f"not a readable video file ({reason})") from error


def _refuse(url: str, flags: int, options: dict[str, str]) -> Any:
    raise PermissionError("a video file may not name another file")


def _words_of(error: Exception) -> str:
    # What FFmpeg answers for a demuxer that is not on the list.
    if isinstance(error, av.error.ArgumentError):
        return (
            "this kind of file is not read; mp4, mov, mkv, webm, avi, ts and mpg are, for example"
        )
    return str(getattr(error, "strerror", None) or type(error).__name__)


def _kind_of(head: bytes) -> str | None:
    """What the bytes are instead of a video; None where that is not plain."""
    if not head:
        return "it is empty"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(_SCRIPTS):
        return "playlists, session descriptions and scripts are not read: send the video itself"
    is_heif = head[4:8] == b"ftyp" and head[8:12] in (b"heic", b"heix", b"avif", b"mif1")
    is_webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    if start.startswith(_PICTURES) or is_heif or is_webp:
        return "it is a picture: send it as an image"
    if start.startswith((b"<!doctype", b"<html", b"{", b"%pdf", b"pk\x03\x04")):
        return "it is a web page, a document or an archive"
    return None
