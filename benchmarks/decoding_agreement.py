"""Compare the features of scaled decoding with those of full decoding, on large photographs.

Large photographs are made of real ones, since none are at hand, in two ways:

    mosaic     real photographs side by side at their own size, so that the detail of each pixel is
               that of a camera's JPEG; the content is a contact sheet. A hard case: much fine detail.
    enlarged   one real photograph, enlarged with Lanczos to the size, with sensor noise of 4 levels
               added; the content is natural, and the class is known.

Both are stored as JPEG (quality 90), at sizes that are no multiples of 8. Top-1 agreement is that of
zero-shot classification with the names of the folder's classes.

    python -m benchmarks.decoding_agreement ../shared/data/flowers [--images 200]
"""

import argparse
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from prompt_serve.bundle import SHIPPED, open_bundle, shipped_bundle
from prompt_serve.image_folders import image_files
from prompt_serve.onnx_encoders import OnnxEncoders
from prompt_serve.preprocess import Preprocessing, decode_image, pixels_from_bytes
from prompt_serve.types import FloatArray

MEGAPIXELS = (2.0, 6.0, 12.0)
ASPECT = 4 / 3
TILE = 256
NOISE = 4.0
