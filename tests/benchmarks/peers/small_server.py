"""A small HTTP server that misbehaves on request; the standard library is all that it imports.

python -I -S small_server.py KIND PORT

It prints the process ids of its children.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BALLAST = 50 * 2**20  # bytes of a child
CHILD = [
    "-c",
    "import signal, time;"
    "signal.signal(signal.SIGINT, signal.SIG_IGN);"
    f"ballast = b'x' * {BALLAST};"
    "time.sleep(600)",
]
ORPHAN = [
    "-c",
    "import subprocess, sys;"
    "print(subprocess.Popen(sys.argv[1:], start_new_session=True).pid, flush=True)",
]


class Answers(BaseHTTPRequestHandler):
    """200 for everything, but what the kind of server says."""

    protocol_version = "HTTP/1.1"
    kind = ""

    def do_GET(self) -> None:
        if self.kind == "silent":
            time.sleep(600)
        self.answer(503 if self.kind == "never ready" else 200)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.kind == "ends when asked":
            print("out of memory", flush=True)
            os._exit(9)
        if self.kind == "never answers":
            time.sleep(600)
        self.answer(500 if self.kind == "answers 500" else 200)

    def answer(self, status: int) -> None:
        self.send_response(status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        with contextlib.suppress(BrokenPipeError):
            self.wfile.write(b"ok")

    def log_message(self, format: str, *arguments: object) -> None:  # its name there
        pass


def main(kind: str, port: int) -> None:
    if kind == "dies at start":
        print("loading", "no weights | in <the folder>", sep="\n", flush=True)
        sys.exit(3)
    if kind == "does not listen":
        time.sleep(600)
    if kind == "ignores Ctrl-C":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    Answers.kind = kind
    server = ThreadingHTTPServer(("127.0.0.1", port), Answers)
    child = [sys.executable, *CHILD]
    if kind == "child":
        print(subprocess.Popen(child).pid, flush=True)
    if kind == "child in a session of its own":
        print(subprocess.Popen(child, start_new_session=True).pid, flush=True)
    if kind == "child without the environment":
        print(subprocess.Popen(child, env={}).pid, flush=True)
    if kind == "orphan in a session of its own":
        subprocess.run([sys.executable, *ORPHAN, *child], check=True)
    if kind == "child that holds the port":
        os.set_inheritable(server.fileno(), True)
        held = subprocess.Popen(child, start_new_session=True, close_fds=False)
        print(held.pid, flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever(poll_interval=0.05)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
