"""Decode images: in this process, or in one of its own where other threads would have to wait.

Pillow decodes WebP and AVIF without releasing the interpreter's lock: 48 megapixels would hold the
event loop for a third of a second. Beyond two megapixels such images are decoded by processes that
run the same code (``decoder_process``), at most as many as there are decode threads, each started
when it is first needed. A process that ends fails the one image that it had; the next image gets a
new one.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict
from typing import BinaryIO, cast

import numpy as np

from prompt_serve.errors import ERRORS_BY_CODE, NotReady, PromptServeError, ServiceError
from prompt_serve.preprocess import (
    Preprocessing,
    decoding_bytes,
    keeps_threads_waiting,
    pixels_from_bytes,
)
from prompt_serve.service.inference import decoder_process
from prompt_serve.types import PixelArray

_MAX_DECODE_S = 60.0  # for 50 megapixels on a busy machine, and far more than it takes
_END_S = 1.0
_MAX_QUICK_BYTES = 48_000_000  # to decode an image: a JPEG of 4 megapixels, a PNG of 3
_MAX_QUICK_FILE = 500_000  # bytes; a photograph of 2 megapixels, which takes 18 ms

_log = logging.getLogger(__name__)


class _TakesLong(Exception):
    """Decoding the image takes long, and has not begun."""


class ImageDecoder:
    """Decodes images for the image tower. Thread-safe; each thread may have a process of its own.

    Args:
        preprocessing: of the backbone.
        max_pixels: maximum number of pixels per image.
        reserve: see ``pixels_from_bytes``.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        max_pixels: int,
        reserve: Callable[[int], AbstractContextManager[object]],
    ) -> None:
        self._preprocessing = preprocessing
        self._max_pixels = max_pixels
        self._reserve = reserve
        self._lock = threading.Lock()  # guards the following
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        self._closed = False

    def __call__(self, data: bytes) -> PixelArray:
        """Decode an image file, then resize and crop it: (S, S, 3) uint8.

        Raises:
            ImageTooLarge, ImageInvalid: as ``decode_image``.
            ServiceError: the process that decoded it has ended.
            NotReady: the service is stopping.
        """
        if not keeps_threads_waiting(data, max_pixels=self._max_pixels):
            return pixels_from_bytes(
                data, self._preprocessing, max_pixels=self._max_pixels, reserve=self._reserve
            )
        with self._reserve(decoding_bytes(data, max_pixels=self._max_pixels)):
            return self._decode_elsewhere(data)

    def quickly(self, data: bytes) -> PixelArray | None:
        """Decode an image as a call does; return None at once if that takes long.

        Raises:
            ImageTooLarge, ImageInvalid: as ``decode_image``.
        """
        try:
            if len(data) > _MAX_QUICK_FILE or keeps_threads_waiting(
                data, max_pixels=self._max_pixels
            ):
                return None
            return pixels_from_bytes(
                data, self._preprocessing, max_pixels=self._max_pixels, reserve=self._reserve_few
            )
        except _TakesLong:
            return None

    def _reserve_few(self, size_bytes: int) -> AbstractContextManager[object]:
        if size_bytes > _MAX_QUICK_BYTES:
            raise _TakesLong
        return self._reserve(size_bytes)

    @property
    def process_ids(self) -> list[int]:
        """Processes that decode images, or wait for one."""
        with self._lock:
            return [process.pid for process in self._all]

    def close(self) -> None:
        """End all processes."""
        with self._lock:
            self._closed = True
            left = list(self._all)
        for process in left:
            self._end(process)

    def _decode_elsewhere(self, data: bytes) -> PixelArray:
        process = self._take()
        try:
            pixels = process.decode(data)
        except PromptServeError:
            self._put_back(process)
            raise
        except (OSError, EOFError, ValueError) as error:
            status = self._end(process)
            if self._closed:
                raise NotReady("The service is stopping.", retry_after_s=1.0) from error
            _log.error("a process that decoded an image of %d bytes ended: %s", len(data), status)
            raise ServiceError(
                f"The process that decoded the image ended ({status}); other images are decoded "
                f"by a new one."
            ) from error
        self._put_back(process)
        return pixels

    def _take(self) -> "_Process":
        while True:
            with self._lock:
                if self._closed:
                    raise NotReady("The service is stopping.", retry_after_s=1.0)
                if not self._idle:
                    process = _Process(self._preprocessing, self._max_pixels)
                    self._all.add(process)
                    return process
                process = self._idle.pop()
            if process.runs:
                return process
            self._end(process)

    def _put_back(self, process: "_Process") -> None:
        with self._lock:
            self._idle.append(process)

    def _end(self, process: "_Process") -> int:
        with self._lock:
            self._all.discard(process)
        return process.end()


class _Process:
    """One process that decodes images, used by one thread at a time."""

    def __init__(self, preprocessing: Preprocessing, max_pixels: int) -> None:
        settings = {"preprocessing": asdict(preprocessing), "max_pixels": max_pixels}
        self._size = preprocessing.image_size
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", decoder_process.__name__, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "OPENBLAS_NUM_THREADS": "1",  # its threads would take memory for nothing
            },
            start_new_session=True,  # signals of a terminal are for the service, which ends it
        )
        self._requests = cast(BinaryIO, self._process.stdin)
        self._answers = cast(BinaryIO, self._process.stdout)
        self.pid = self._process.pid

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def decode(self, data: bytes) -> PixelArray:
        """Return the pixels (S, S, 3).

        Raises:
            PromptServeError: the image is invalid.
            OSError, EOFError, ValueError: the process has ended.
        """
        timer = threading.Timer(_MAX_DECODE_S, self._process.kill)
        timer.daemon = True
        timer.start()
        try:
            decoder_process.write_frame(self._requests, data)
            answer = decoder_process.read_frame(self._answers)
        finally:
            timer.cancel()
        if answer[:1] == b"-":
            fields = json.loads(answer[1:])
            raise ERRORS_BY_CODE[fields["code"]](fields["message"], **fields["facts"])
        return np.frombuffer(answer, np.uint8, offset=1).reshape(self._size, self._size, 3)

    def end(self) -> int:
        """End the process; returns its exit status, negative for a signal."""
        self._process.kill()
        status = -signal.SIGKILL
        with suppress(subprocess.TimeoutExpired):  # of much memory that is given back
            status = self._process.wait(_END_S)
        for pipe in (self._requests, self._answers):
            with suppress(OSError, ValueError):
                pipe.close()
        return status
