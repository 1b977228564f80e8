"""Freed activations stay with the process instead of going back to the system.

glibc maps every block above 32 MiB anew and returns it when it is freed, and so it does with what
lies at the end of its heap. A prefill of a video makes and drops such blocks in every layer, and
the system hands each back page by page, zeroed: as long as the matrix products themselves.
"""

from __future__ import annotations

import ctypes
import logging
import os

logger = logging.getLogger(__name__)

VARIABLE = "SPECVLM_CPU_KEEP_MEMORY"
_USERS_OWN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
# <malloc.h>; the values are C ints.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST = 2**31 - 1


def install() -> bool:
    """Let this process keep what it frees; returns whether it will.

    Not where ``SPECVLM_CPU_KEEP_MEMORY=0`` or the user's own settings of glibc's allocator say
    otherwise, nor with another C library.
    """
    if os.environ.get(VARIABLE, "1") == "0":
        return False
    own = [name for name in _USERS_OWN if name in os.environ]
    if own:
        logger.info("%s is set: the allocator stays as it is.", own[0])
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(
        mallopt(ctypes.c_int(option), ctypes.c_int(_LARGEST)) == 1
        for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD)
    )
