"""Where a request's media are: URLs, paths, data URLs and base64, in every spelling.

SGLang reads a path as a URL (``clip #1.mp4`` loses its end), and splits a data URL at its first
comma, which may stand in the media type. Here each becomes what it says: the bytes, a path of this
machine, or an http URL for SGLang's own loader, which applies ``--allowed-media-domains``.
"""

from __future__ import annotations

import os
import re
import string
from typing import Any, NamedTuple
from urllib.parse import unquote, unquote_to_bytes, urlparse

import pybase64

# Base64 may begin with a slash too, but a whole file in it is longer than any path.
LONGEST_PATH = 4096
LONGEST_MESSAGE = 300
_LONGEST_NAME = 60
_MARKER = re.compile(r";\s*base64\s*,", re.IGNORECASE)
_PARAMETERS = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*")*,')
_LONGEST_MEDIA_TYPE = 1024
_STANDARD_ALPHABET = str.maketrans("-_", "+/", string.whitespace)
# How every JPEG file begins in base64.
_JPEG_BASE64 = "/9j/"
_NO_FILE = "the server finds no such file"


class DataURL(NamedTuple):
    """A ``data:`` URL in its parts.

    Attributes
    ----------
    media_type : str
        In lower case, without parameters; empty where none is given.
    data : str
        What stands after the comma.
    is_base64 : bool
        Whether it is base64, else percent-encoded.
    """

    media_type: str
    data: str
    is_base64: bool

    def content(self) -> bytes:
        """The bytes.

        Raises
        ------
        ValueError
            Not base64 where it says so.
        """
        if not self.is_base64:
            return unquote_to_bytes(self.data)
        return decode_base64(unquote(self.data) if "%" in self.data else self.data)


def is_data_url(source: str) -> bool:
    """Whether ``source`` begins as a data URL, in any case."""
    return source[:5].lower() == "data:"


def parse_data_url(url: str) -> DataURL:
    """Split a data URL; commas and quotes may stand in its media type.

    Raises
    ------
    ValueError
        No comma before the data.
    """
    head = url[5 : 5 + _LONGEST_MEDIA_TYPE]
    marker = _MARKER.search(head)
    end = marker or _PARAMETERS.match(head)
    if end is None:
        raise ValueError("a data URL must be base64 after 'data:TYPE;base64,'")
    media_type = head[: end.end() - 1].split(";")[0].strip().lower()
    return DataURL(media_type, url[5 + end.end() :], marker is not None)


def decode_base64(text: str) -> bytes:
    """Decode standard or URL-safe base64, with or without its padding and line breaks.

    Raises
    ------
    ValueError
        Other characters, or a length that no base64 has.
    """
    try:
        return pybase64.b64decode(text, validate=True)
    except ValueError:
        plain = text.translate(_STANDARD_ALPHABET).rstrip("=")
        return pybase64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)


def resolve(source: str) -> str | bytes:
    """Find out what the text of a request means.

    Returns
    -------
    bytes or str
        The content of a data URL or of base64; the path of a file of this machine; or a URL that
        begins with ``http://`` or ``https://``, to be downloaded by SGLang.

    Raises
    ------
    ValueError
        None of these.
    """
    scheme = source[:8].lower()
    if scheme.startswith(("http://", "https://")):
        name, rest = source.split(":", 1)
        return f"{name.lower()}:{rest}"
    if is_data_url(source):
        return _content(source)
    path = local_path(source)
    if path is not None:
        return path
    is_path = scheme.startswith(("/", "file:")) and not source.startswith(_JPEG_BASE64)
    if is_path and len(source) < LONGEST_PATH:
        raise ValueError(_NO_FILE)
    try:
        return decode_base64(source)
    except ValueError as error:
        raise ValueError(
            f"neither a file that the server finds, nor a URL, nor base64 ({error})"
        ) from error


def local_path(source: str) -> str | None:
    """The path of an existing regular file, or None.

    A path means itself; only if there is no such file are its percent signs decoded. In a
    ``file:`` URL they are decoded first, and ``#`` and ``?`` end it only if no file has them.
    """
    if len(source) >= LONGEST_PATH or "\0" in source:
        return None
    if source[:5].lower() != "file:":
        return next((path for path in (source, unquote(source)) if os.path.isfile(path)), None)
    plain = re.sub(r"^//(localhost(?=/))?", "", source[5:], flags=re.IGNORECASE)
    candidates = (unquote(plain), plain, unquote(urlparse(plain).path))
    return next((path for path in candidates if path[:1] == "/" and os.path.isfile(path)), None)


def resolve_image(source: str) -> str | bytes:
    """As `resolve`, for an image: the bytes, or an http URL.

    Raises
    ------
    ValueError
        Neither, or a file that cannot be read.
    """
    found = resolve(source)
    if isinstance(found, bytes) or found.startswith(("http://", "https://")):
        return found
    try:
        with open(found, "rb") as file:
            return file.read()
    except OSError as error:
        raise ValueError(f"the file cannot be read ({error.strerror})") from error


def load_frame(source: Any) -> Any:
    """Load one picture under the rules that SGLang has for images.

    This is the door for frames that stand inside a request: the same forms are read and the same
    domains allowed as for an image part, by SGLang's own loader.

    Parameters
    ----------
    source
        URL, path, data URL, base64, bytes, or a PIL image.

    Returns
    -------
    PIL.Image.Image
        In RGB.

    Raises
    ------
    ValueError
        It cannot be had, or is no picture; in a sentence under 500 characters.
    """
    from PIL import Image
    from sglang.srt.utils.common import CLIENT_MEDIA_EXCEPTIONS, load_image

    try:
        # On a GPU SGLang would decode to a tensor there.
        picture = resolve_image(source) if isinstance(source, str) else source
        image, _ = load_image(picture, False)
    except (*CLIENT_MEDIA_EXCEPTIONS, OSError, Image.DecompressionBombError) as error:
        raise ValueError(shortened(error)) from error
    return image.convert("RGB")


def shortened(error: BaseException) -> str:
    """What an error says, in at most `LONGEST_MESSAGE` characters: its beginning and its end."""
    text = str(error)
    half = (LONGEST_MESSAGE - 5) // 2
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:half]} ... {text[-half:]}"


def name_of(source: Any) -> str:
    """A short name of a path or URL, to tell it from others; empty for everything else.

    No media byte is in it: base64 has no dot, and a data URL none before its data.
    """
    text = getattr(source, "url", source)
    if not isinstance(text, str) or is_data_url(text):
        return ""
    name = re.split(r"[?#]", text)[0].rsplit("/", 1)[-1]
    return name[-_LONGEST_NAME:] if "." in name else ""


def _content(url: str) -> bytes:
    try:
        return parse_data_url(url).content()
    except ValueError as error:
        said = str(error)
        is_ours = said.startswith("a data URL")
        raise ValueError(said if is_ours else f"a data URL must be base64 ({said})") from error
