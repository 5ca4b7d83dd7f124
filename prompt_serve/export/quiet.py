"""Keep what exporting libraries say to their own developers off the user's terminal."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Silence torch.onnx, onnxscript, the quantizer, and open_clip's note on random weights.

    Silenced are: progress on standard output, deprecations inside those libraries, and records
    logged directly to the root logger, as a library should not do. Our own loggers and errors
    come through.
    """
    root = logging.getLogger()
    # logging.warning() would otherwise install a handler on stderr for the rest of the process.
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
    """A filter of a logger, unlike one of a handler, sees only what is logged to it directly."""
    return False
