"""Learn a classifier, serve it and ask it; run by ``make quickstart``, which installs no torch.

The task is the kind of thing an emoji shows. It is learned from the drawings of four vendors, and
asked about drawings of a fifth one, which neither the backbone nor the task has seen. No network
is needed.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import prompt_serve
from prompt_serve.client import Client

EMOJI = Path(prompt_serve.__file__).parent / "assets" / "emoji"
WORK = Path(os.environ.get("PROMPT_SERVE_HOME", ".prompt-serve")).resolve()
PORT = int(os.environ.get("PORT", "3999"))
BIN = Path(sys.executable).parent


def main() -> None:
    started = time.monotonic()
    task = WORK / "emoji.safetensors"
    step("1. Learn (the test images are drawings of another vendor)")
    run("train", str(EMOJI), "--method", "class-vectors", "--out", str(task))

    step("2. Serve, and upload the task while the service runs")
    with service() as url, Client(url) as client:
        client.wait_until_ready(timeout_s=60)
        upload(client, task)

        step("3. Ask about images it has not seen")
        ask(client, "emoji")
    print(f"\nDone in {time.monotonic() - started:.0f} s. Try it yourself: make serve")


def upload(client: Client, path: Path) -> None:
    """Upload a prompt file under its own name."""
    info = client.upload(path, name=path.stem)
    size = path.stat().st_size
    print(f"task {info.name!r}: {info.n_classes} classes, {size:,} bytes, {info.version[:12]}")


def ask(client: Client, task: str) -> None:
    """Classify one unseen drawing per class and print the predictions."""
    folders = sorted(path for path in (EMOJI / "test").iterdir() if path.is_dir())
    images = [sorted(folder.glob("*.png"))[0] for folder in folders]
    right = 0
    for path, result in zip(images, client.classify(images, task, top_k=2), strict=True):
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
    WORK.mkdir(parents=True, exist_ok=True)
    log = WORK / "serve.log"
    environment = {**os.environ, "PROMPT_SERVE_HOME": str(WORK)}
    command = [str(BIN / "bentoml"), "serve", "--port", str(PORT), "--host", "127.0.0.1"]
    print(f"$ {' '.join(['bentoml', *command[1:]])}   (log: {log})", flush=True)
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
