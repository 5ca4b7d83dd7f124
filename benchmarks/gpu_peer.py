"""What PyTorch reaches with the same architecture in fp16 on CUDA, and the peak of the device."""

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import open_clip
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.rates import images_per_s

_SIDE, _PRODUCTS = 8192, 10  # of the matrix products that measure the peak


def print_peer(model: str, pixels: np.ndarray, *, seconds: float) -> None:
    """Print images/s of open_clip's image tower in fp16, eager, by batch size.

    Args:
        model: its architecture; the weights are random.
        pixels: (B, S, S, 3) uint8, the largest batch.
        seconds: per batch size.
    """
    tower = open_clip.create_model(model, pretrained=None).visual.half().cuda().eval()
    peak = _peak_flops()
    print(f"peak by fp16 matrix products of {_SIDE}: {peak / 1e12:.0f} TFLOP/s")

    @torch.inference_mode()
    def encode(batch: Tensor) -> Tensor:
        images = batch.cuda().permute(0, 3, 1, 2).half() / 255
        features: Tensor = torch.nn.functional.normalize(tower(images).float(), dim=-1)
        return features.cpu()

    flops = _flops_per_image(encode, pixels[:1])
    print(f"{model}: {flops / 1e9:.1f} GFLOP per image, so at most {peak / flops:,.0f} images/s")
    size = 1
    while size <= len(pixels):
        batch = torch.from_numpy(pixels[:size].copy())
        encode(batch)
        rate, p50_ms = images_per_s(partial(encode, batch), size, seconds)
        print(
            f"batch {size:4d}, PyTorch eager: {rate:9,.0f} images/s, {p50_ms:8.2f} ms (median), "
            f"{rate * flops / peak:.2f} of the peak"
        )
        size *= 2


def _flops_per_image(encode: Callable[[Tensor], Tensor], pixels: np.ndarray) -> int:
    was_fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # its operator is not counted
    with FlopCounterMode(display=False) as counter:
        encode(torch.from_numpy(pixels))
    torch.backends.mha.set_fastpath_enabled(was_fast)
    return int(counter.get_total_flops())


def _peak_flops() -> float:
    left, right = (torch.randn(_SIDE, _SIDE, device="cuda", dtype=torch.half) for _ in range(2))
    left @ right
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(_PRODUCTS):
        left @ right
    torch.cuda.synchronize()
    return _PRODUCTS * 2 * _SIDE**3 / (time.perf_counter() - started)
