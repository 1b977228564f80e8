"""Files that name other files and addresses, for demuxers that would follow."""

from __future__ import annotations

import struct
from pathlib import Path

from tests.support import numbered


def scripts(canary: str, port: int) -> dict[str, bytes]:
    """Playlists, session descriptions and scripts that name the file and the port.

    Parameters
    ----------
    canary
        Absolute path of a file.
    port
        Of a listener on 127.0.0.1, for UDP and TCP.
    """
    url = f"http://127.0.0.1:{port}/a.ts"
    hls = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{}\n#EXT-X-ENDLIST\n"
    dash = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'profiles="urn:mpeg:dash:profile:isoff-live:2011" mediaPresentationDuration="PT8S">'
        '<Period><AdaptationSet mimeType="video/mp4"><Representation id="0" bandwidth="1">'
        f"<BaseURL>{url}</BaseURL></Representation></AdaptationSet></Period></MPD>"
    )
    sdp = (
        "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
        f"m=video {port + 2} RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n"
    )
    texts = {
        "hls of a URL": hls.format(url),
        "hls of a file": hls.format(f"file://{canary}"),
        "concat": f"ffconcat version 1.0\nfile '{canary}'\n",
        # Relative names are what FFmpeg calls safe.
        "concat of a neighbour": "ffconcat version 1.0\nfile pyproject.toml\n",
        "concat of a protocol": f"ffconcat version 1.0\nfile 'tcp://127.0.0.1:{port}'\n",
        "dash": dash,
        "sdp": sdp,
        "sap": sdp,
        "ffmetadata": f";FFMETADATA1\ntitle={canary}\n[CHAPTER]\nTIMEBASE=1/1\nSTART=0\nEND=1\n",
        "asx": f'<ASX version="3"><Entry><Ref href="{url}"/></Entry></ASX>',
        "pls": f"[playlist]\nFile1={url}\nNumberOfEntries=1\n",
        "ram": f"rtsp://127.0.0.1:{port}/a\n",
        "reference": f"[Reference]\nRef1={url}?MSWMExt=.asf\n",
        "smooth streaming": f"<SmoothStreamingMedia><StreamIndex Url='{url}'/>",
        "vobsub": f"# VobSub index file, v7\nsize: 720x576\n{canary}\n",
        "a path": canary,
        "a protocol": f"concat:{canary}|{canary}",
        "lavfi": f"movie={canary}",
    }
    return {name: text.encode() for name, text in texts.items()}


def write_movie_with_outside_data(path: Path, canary: str) -> bytes:
    """An mp4 whose track says that its data lie in another file."""
    content = numbered.write(path, "libx264", frames=4).read_bytes()
    inside = content.index(b"dref") - 4
    (size,) = struct.unpack_from(">I", content, inside)
    entry = alias(canary)
    reference = struct.pack(">I4sII", 16 + len(entry), b"dref", 0, 1) + entry
    grown = len(reference) - size
    changed = bytearray(content[:inside] + reference + content[inside + size :])
    for name in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        at = content.index(name) - 4
        struct.pack_into(">I", changed, at, struct.unpack_from(">I", content, at)[0] + grown)
    return bytes(changed)


def alias(canary: str) -> bytes:
    """A classic Mac OS alias record of a path, as QuickTime's ``alis`` holds it."""
    name = canary.rsplit("/", 1)[-1].encode()[:60]
    record = bytes(10)
    record += bytes([1]) + b"x".ljust(27, b"\0")
    record += bytes(12)
    record += bytes([len(name)]) + name.ljust(63, b"\0")
    record += bytes(16) + struct.pack(">hh", 1, 1) + bytes(16)
    whole = canary.encode()
    padded = whole + b"\0" * (len(whole) % 2)
    record += struct.pack(">hH", 2, len(whole)) + padded
    record += struct.pack(">hH", -1, 0)
    record += bytes(max(0, 160 - len(record)))
    return struct.pack(">I4sI", 12 + len(record), b"alis", 0) + record
