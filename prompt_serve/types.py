"""Types shared by the whole package: arrays, choices, and the identity of a backbone."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

FloatArray = NDArray[np.float32]
DoubleArray = NDArray[np.float64]
HalfArray = NDArray[np.float16]
IntArray = NDArray[np.int64]
PixelArray = NDArray[np.uint8]
BoolArray = NDArray[np.bool_]

ClassPosition = Literal["end", "middle", "front"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]
EngineName = Literal["onnxruntime", "openvino", "tensorrt"]


class BackboneRef(BaseModel):
    """Identity and sizes of a backbone. A prompt is refused by any other backbone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1, max_length=500)
    fingerprint: str = Field(pattern=r"^[0-9a-f]{64}$")  # sha256 over all that changes a feature
    text_width: int = Field(ge=1)  # D of the text tower
    embed_dim: int = Field(ge=1)  # E
    context_length: int = Field(ge=2)  # longest sequence of the text tower, in tokens

    def current(self, runs: "BackboneRef", former_fingerprint: str | None) -> "BackboneRef":
        """Return ``runs`` if this is the same backbone under its former fingerprint, else self.

        Args:
            runs: the backbone that runs here.
            former_fingerprint: its fingerprint in files from before settings counted, if another.
        """
        same = self.id == runs.id and self.fingerprint == former_fingerprint
        return runs if same else self
