"""A process that dies the moment it opens a file or a socket, in whatever language.

Linux's seccomp looks at system calls, so C libraries are seen too.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
import sys
from collections.abc import Callable

_OPENING = {
    "x86_64": {
        "open": 2,
        "creat": 85,
        "openat": 257,
        "openat2": 437,
        "socket": 41,
        "connect": 42,
        "bind": 49,
        "socketpair": 53,
        "execve": 59,
    },
    "aarch64": {
        "openat": 56,
        "openat2": 437,
        "socket": 198,
        "socketpair": 199,
        "bind": 200,
        "connect": 203,
        "execve": 221,
    },
}
SUPPORTED = sys.platform == "linux" and platform.machine() in _OPENING
_KILL, _ALLOW = 0x80000000, 0x7FFF0000
_LOAD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER_MODE = 38, 22, 2


def forbid_opening() -> None:
    """From now on this thread, and those it starts, die with SIGSYS when they open anything.

    Raises
    ------
    OSError
        The kernel does not let a process give up its rights.
    """
    numbers = list(_OPENING[platform.machine()].values())
    steps = [struct.pack("=HBBI", _LOAD, 0, 0, 0)]
    for left, number in zip(range(len(numbers), 0, -1), numbers, strict=True):
        steps.append(struct.pack("=HBBI", _IF_EQUAL, left, 0, number))
    steps.append(struct.pack("=HBBI", _RETURN, 0, 0, _ALLOW))
    steps.append(struct.pack("=HBBI", _RETURN, 0, 0, _KILL))
    code = ctypes.create_string_buffer(b"".join(steps))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    program = Program(len(steps), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((_NO_NEW_PRIVILEGES, 1), (_SET_SECCOMP, _FILTER_MODE, ctypes.byref(program))):
        padded = (*arguments, *[0] * (5 - len(arguments)))
        if libc.prctl(*padded):
            raise OSError(ctypes.get_errno(), "prctl")


def run_without_opening(act: Callable[[], None], seconds: int = 20) -> str:
    """Run ``act`` in a fork that may open nothing.

    Returns
    -------
    str
        ``"done"``, ``"opened"`` (a file or a socket), ``"hung"``, or how else it ended.
    """
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(seconds)
            forbid_opening()
            act()
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    ended = os.waitstatus_to_exitcode(status)
    named = {0: "done", -signal.SIGSYS: "opened", -signal.SIGALRM: "hung", 3: "failed"}
    return named.get(ended, f"ended with {ended}")
