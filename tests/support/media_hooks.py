"""What our reading of media replaces in SGLang's module of loaders."""

from __future__ import annotations

COMMON = "sglang.srt.utils.common"
LOADERS = tuple(
    (COMMON, name)
    for name in (
        "_normalize_video_input",
        "load_image",
        "get_image_bytes",
        "get_mm_http_session",
        "download_remote_media",
        "configure_media_url_security",
    )
)
"""As `tests.support.hooks.unhooked` takes them."""
