"""Classify images with the file of ``prompt-serve export-task``.

Needs onnxruntime and Pillow alone: ``python edge.py pets.onnx cat.jpg``.
"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
facts = session.get_modelmeta().custom_metadata_map
preprocessing, names = json.loads(facts["preprocessing"]), json.loads(facts["class_names"])
side, squash = preprocessing["image_size"], preprocessing["resize_mode"] == "squash"
resample = Image.Resampling[preprocessing["interpolation"].upper()]

for path in sys.argv[2:]:
    image = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    short = min(image.size)
    width, height = (side if squash else int(side * length / short) for length in image.size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    image = image.resize((width, height), resample).crop((left, top, left + side, top + side))
    answers = session.run(["probabilities", "unknown"], {"pixels": np.asarray(image)[np.newaxis]})
    best = sorted(zip(answers[0][0].tolist(), names, strict=True), reverse=True)[:3]
    print(path, *(f"{name} {p:.1%}" for p, name in best), "unknown" if answers[1][0] else "")
