"""Memory of large buffers, such as images being decoded: it goes back to the system.

Left alone, glibc adapts to them: each thread keeps up to 64 MiB of what it has freed. With the
threads of a service that is more than the model takes.
"""

import ctypes
import platform

from prompt_serve.engines.onnx_session import available_cores

# Of mallopt(3), in bits/malloc.h. Setting the first two ends the adaptation.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGE_BYTES = 16 * 2**20  # an image is allocated in blocks of as much
_KEPT_BYTES = 32 * 2**20
_MIN_ARENAS = 2


def return_large_buffers() -> None:
    """Let this process keep little of what it frees. Only with glibc; call it before threads
    start."""
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
    libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    libc.mallopt(_M_ARENA_MAX, max(_MIN_ARENAS, available_cores()))
