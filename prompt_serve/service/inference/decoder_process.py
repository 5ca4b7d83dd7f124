"""Program of a process that decodes images: ``python -m ...decoder_process SETTINGS``.

Frames on standard input are image files; each is answered by one frame on standard output: ``+``
and the pixels (S, S, 3), or ``-`` and the error in JSON. It ends with its parent, which holds the
other end of standard input.
"""

import json
import os
import struct
import sys
from typing import BinaryIO

from prompt_serve.errors import PromptServeError
from prompt_serve.preprocess import Preprocessing, pixels_from_bytes

_NICENESS = 10  # the image encoder, and everybody's smaller images, go first
_LENGTH = struct.Struct("<Q")


def write_frame(file: BinaryIO, *parts: bytes) -> None:
    """Write one frame, made of all the parts.

    Raises:
        OSError: the other process has ended.
    """
    file.write(_LENGTH.pack(sum(map(len, parts))))
    for part in parts:
        file.write(part)
    file.flush()


def read_frame(file: BinaryIO) -> bytes:
    """Return the next frame.

    Raises:
        EOFError: the other process has ended.
    """
    return _exactly(file, _LENGTH.unpack(_exactly(file, _LENGTH.size))[0])


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data


def _answer(data: bytes, preprocessing: Preprocessing, max_pixels: int) -> tuple[bytes, bytes]:
    try:
        return b"+", pixels_from_bytes(data, preprocessing, max_pixels=max_pixels).tobytes()
    except PromptServeError as error:
        fields = {"code": error.code, "message": error.message, "facts": error.facts}
        return b"-", json.dumps(fields).encode()


def main() -> None:
    """Answer frames until standard input is closed."""
    settings = json.loads(sys.argv[1])
    preprocessing, max_pixels = Preprocessing(**settings["preprocessing"]), settings["max_pixels"]
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    os.nice(_NICENESS)
    while True:
        try:
            data = read_frame(sys.stdin.buffer)
            write_frame(answers, *_answer(data, preprocessing, max_pixels))
        except (EOFError, BrokenPipeError):
            os._exit(0)


if __name__ == "__main__":
    main()
