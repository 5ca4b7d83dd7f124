"""Large buffers of many threads go back to the system."""

import platform
import subprocess
import sys

import pytest

THREADS, ROUNDS = 8, 3
PROGRAM = """
import io, random, sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np, psutil
from PIL import Image
from prompt_serve.service.server.allocator import return_large_buffers

if sys.argv[1] == "yes":
    return_large_buffers()
files = []
for side in (300, 700, 1100, 1600):
    file = io.BytesIO()
    Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(file, "PNG")
    files.append(file.getvalue())

def decode(seed):
    data = random.Random(seed).choice(files)
    Image.open(io.BytesIO(data)).convert("RGB").resize((32, 32)).tobytes()

before = psutil.Process().memory_info().rss
pools = [ThreadPoolExecutor(1) for _ in range(int(sys.argv[2]))]
for n in range(int(sys.argv[3])):
    for future in [pool.submit(decode, 100 * i + n) for i, pool in enumerate(pools)]:
        future.result()
    for future in [pool.submit(decode, 100 * i + n + 50) for i, pool in enumerate(pools)]:
        future.result()
print(psutil.Process().memory_info().rss - before)
"""


def kept_bytes(returns: str) -> int:
    """Return what decoding in several threads leaves in memory."""
    command = [sys.executable, "-c", PROGRAM, returns, str(THREADS), str(ROUNDS)]
    return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_threads_that_decoded_images_keep_little_of_them() -> None:
    assert kept_bytes("yes") < 0.7 * kept_bytes("no")
