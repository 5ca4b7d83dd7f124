"""Learn two tasks, serve and ask them; run by ``make demo``, with torch.

The first is what ``prompt-serve train`` learns by default. The second is a prompt of a few hundred
numbers (DIP), which is folded into class features when it is uploaded and takes new class names.
"""

import time

from quickstart import EMOJI, WORK, ask, run, service, step, upload

from prompt_serve.client import Client


def main() -> None:
    started = time.monotonic()
    default, prompt = WORK / "emoji.safetensors", WORK / "emoji-prompt.safetensors"
    step("1. Learn with the defaults (the test images are drawings of another vendor)")
    run("train", str(EMOJI), "--out", str(default))

    step("2. Learn a prompt")
    run("train", str(EMOJI), "--method", "dip", "--shots", "16", "--min-steps", "1000",
        "--out", str(prompt))  # fmt: skip

    step("3. Serve, and upload both while the service runs")
    with service() as url, Client(url) as client:
        client.wait_until_ready(timeout_s=60)
        upload(client, default)
        upload(client, prompt)

        step("4. Ask both about images they have not seen")
        for path in (default, prompt):
            print(path.stem)
            ask(client, path.stem)
    print(f"\nDone in {time.monotonic() - started:.0f} s. Try it yourself: make serve")


if __name__ == "__main__":
    main()
