"""``--verbose`` of every command: debug logs, and the traceback of an error, on standard error."""

import logging
import platform
import sys
import traceback

import click

from prompt_serve import __version__

_log = logging.getLogger(__name__)
_VERBOSE = "prompt_serve.verbose"  # key of click's ``meta``
_LOGGERS = ("prompt_serve", "httpx", "huggingface_hub")


def verbose_option() -> click.Option:
    """Return the option ``-v``, ``--verbose``."""
    return click.Option(
        ["-v", "--verbose"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_switch_on,
        help="Print debug logs, and the traceback of an error, to standard error.",
    )


def print_traceback(context: click.Context, error: BaseException) -> None:
    """Print the traceback of an error with ``--verbose``."""
    if context.meta.get(_VERBOSE):
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)


def _switch_on(context: click.Context, option: click.Parameter, is_verbose: bool) -> None:
    if not is_verbose or context.resilient_parsing or context.meta.get(_VERBOSE):
        return
    context.meta[_VERBOSE] = True
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    levels = {name: logging.getLogger(name).level for name in _LOGGERS}
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.DEBUG)
        logging.getLogger(name).addHandler(handler)
    _log.debug("%s %s, Python %s", context.command_path, __version__, platform.python_version())

    def switch_off() -> None:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
            logging.getLogger(name).removeHandler(handler)

    context.find_root().call_on_close(switch_off)
