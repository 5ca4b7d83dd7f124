"""``prompt-serve serve``: start the service, and say where its page is when it is ready."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import click

from prompt_serve.cli.failures import EXIT_INTERRUPTED
from prompt_serve.cli.user_path import UserPath

SERVICE = "prompt_serve.service.bento:PromptServe"
_POLL_S = 0.2
_EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104  # compared, not bound


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65_535),
    default=3000,
    show_default=True,
    help="Port to listen on.",
)
@click.option(
    "--bundle",
    type=UserPath(path_type=str),
    metavar="FOLDER",
    help="Exported backbone to serve, or embedded or embedded-vit, which come with the package.  "
    "[default: PROMPT_SERVE_BUNDLE, else embedded]",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Worker processes; each loads its own copy of the model.  [default: "
    "PROMPT_SERVE_WORKERS, else 1]",
)
def serve(host: str, port: int, bundle: str | None, workers: int | None) -> None:
    """Start the service, and print the address of its page when it is ready. Ctrl-C stops it.

    A front of `bentoml serve`, which has further options (TLS, access log). All other settings are
    environment variables PROMPT_SERVE_*; see docs/reference.md.

    \b
    prompt-serve serve
    prompt-serve serve --port 8080 --bundle bundles/b16 --workers 2
    """
    import bentoml  # noqa: F401  # its absence names the extra, before anything is started

    environment = dict(os.environ)
    if bundle is not None:
        environment["PROMPT_SERVE_BUNDLE"] = bundle
    if workers is not None:
        environment["PROMPT_SERVE_WORKERS"] = str(workers)
    command = [sys.executable, "-m", "bentoml", "serve", SERVICE]
    command += ["--host", host, "--port", str(port)]
    process = subprocess.Popen(command, env=environment)  # noqa: S603 (our own)
    local = "localhost" if host in (*_EVERY_ADDRESS, "127.0.0.1") else host
    url = f"http://[{local}]:{port}" if ":" in local else f"http://{local}:{port}"
    announcer = threading.Thread(target=_announce, args=(process, url), daemon=True)
    announcer.start()
    code = _wait(process)
    if code:
        raise click.exceptions.Exit(EXIT_INTERRUPTED if code == -signal.SIGINT else abs(code))


def _announce(process: subprocess.Popen[bytes], url: str) -> None:
    """Print the page's address once the service answers."""
    import httpx

    with httpx.Client(trust_env=False) as client:
        while process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if client.get(f"{url}/readyz").status_code == httpx.codes.OK:
                    click.echo(f"Ready: {url}/v1/ui (Ctrl-C stops the service)")
                    return
            time.sleep(_POLL_S)


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Return the exit code of the service, which gets the signals that end this process."""

    def forward(number: int, _: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, forward)
    return process.wait()
