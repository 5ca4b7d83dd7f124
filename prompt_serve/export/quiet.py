"""Keep the developer messages of the export libraries off the user's terminal."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence torch.onnx, onnxscript, the quantizer, and open_clip's note on random weights.

    Silences progress on standard output, deprecation warnings, and records logged directly to the
    root logger. Errors and the records of our own loggers still appear.
    """
    root = logging.getLogger()
    # Without a handler, logging.warning() would install one on stderr for the whole process.
    null = logging.NullHandler()
    root.addHandler(null)
    root.addFilter(_nothing)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            _errors_only("torch.onnx"),
            _errors_only("onnxscript"),
            _errors_only("onnx_ir"),
        ):
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        root.removeFilter(_nothing)
        root.removeHandler(null)


@contextlib.contextmanager
def _errors_only(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _nothing(record: logging.LogRecord) -> bool:
    """Reject every record. A logger's filter sees only records logged directly to that logger."""
    return False
