"""Train a prompt, serve it and ask it; run by ``make demo``.

The prompt learns the kind of thing an emoji shows from the drawings of four vendors, and is asked
about drawings of a fifth one, which neither the backbone nor the prompt has seen. No network is
needed.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import prompt_serve
from prompt_serve.bundle import BUNDLE_FORMAT, bundle_format
from prompt_serve.client import Client

EMOJI = Path(prompt_serve.__file__).parent / "assets" / "emoji"
WORK = Path(os.environ.get("PROMPT_SERVE_HOME", ".prompt-serve")).resolve()
PROMPT = WORK / "emoji.safetensors"
PORT = int(os.environ.get("PORT", "3999"))
BIN = Path(sys.executable).parent


def main() -> None:
    started = time.monotonic()
    WORK.mkdir(parents=True, exist_ok=True)
    step("1. Train a prompt (the test images are drawings of another vendor)")
    run("train", str(EMOJI), "--method", "dip", "--shots", "16", "--seed", "1", "--views", "2",
        "--out", str(PROMPT))  # fmt: skip
    print(f"\nThe prompt file has {PROMPT.stat().st_size:,} bytes.")

    step("2. Export the backbone to ONNX")
    bundle = WORK / "bundles" / "embedded"
    if bundle_format(bundle) == BUNDLE_FORMAT:
        print(f"already there: {bundle}")
    else:
        run("export", "embedded", "-o", str(bundle))

    step("3. Serve it, and upload the prompt while the service runs")
    with service() as url, Client(url) as client:
        client.wait_until_ready(timeout_s=60)
        info = client.upload(PROMPT, name="emoji")
        print(f"task {info.name!r}: {info.n_classes} classes, version {info.version[:12]}")

        step("4. Ask about images it has not seen")
        ask(client)
    print(f"\nDone in {time.monotonic() - started:.0f} s. Try it yourself: make serve")


def ask(client: Client) -> None:
    """Classify one unseen drawing per class and print the predictions."""
    folders = sorted(path for path in (EMOJI / "test").iterdir() if path.is_dir())
    images = [sorted(folder.glob("*.png"))[0] for folder in folders]
    right = 0
    for path, result in zip(images, client.classify(images, "emoji", top_k=2), strict=True):
        if result.predictions is None:
            raise SystemExit(f"{path}: {result.error}")
        first, second = result.predictions[0].classes
        right += first.class_name == path.parent.name
        print(
            f"  {path.parent.name + '/' + path.name:<52} {first.class_name} "
            f"{first.probability:.0%}, {second.class_name} {second.probability:.0%}"
        )
    print(f"  {right} of {len(images)} right")


@contextmanager
def service() -> Iterator[str]:
    """Run ``bentoml serve`` and yield its URL; stop it at the end."""
    log = WORK / "serve.log"
    environment = {**os.environ, "PROMPT_SERVE_HOME": str(WORK)}
    command = [str(BIN / "bentoml"), "serve", "--port", str(PORT), "--host", "127.0.0.1"]
    print(f"$ {' '.join(['bentoml', *command[1:]])}   (log: {log})")
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
        try:
            yield f"http://127.0.0.1:{PORT}"
        finally:
            process.terminate()
            process.wait(timeout=30)
            print("service stopped")


def run(*arguments: str) -> None:
    """Print one ``prompt-serve`` command and run it."""
    print(f"$ prompt-serve {' '.join(arguments)}", flush=True)
    subprocess.run([str(BIN / "prompt-serve"), *arguments], check=True)


def step(title: str) -> None:
    print(f"\n== {title}", flush=True)


if __name__ == "__main__":
    main()
