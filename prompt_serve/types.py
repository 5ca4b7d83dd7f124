"""Array types shared by the whole package. Shapes stand in the docstrings that use them."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]
HalfArray = NDArray[np.float16]
IntArray = NDArray[np.int64]
PixelArray = NDArray[np.uint8]

ClassPosition = Literal["end", "middle", "front"]
Precision = Literal["fp32", "fp16", "int8"]
DoubleArray = NDArray[np.float64]
