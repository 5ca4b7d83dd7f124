"""Plain FastAPI: every request decodes and encodes its own photograph, in a thread of the pool."""

import sys
from typing import Annotated

import uvicorn
from fastapi import FastAPI, File

from benchmarks.peers.servers.open_clip_encoder import Classifier

app = FastAPI()
classifier = Classifier()


@app.post("/classify")
def classify(image: Annotated[bytes, File()]) -> list[float]:
    pixels = classifier.pixels(image)[None]
    found: list[float] = classifier.probabilities(pixels)[0].tolist()
    return found


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=False)
