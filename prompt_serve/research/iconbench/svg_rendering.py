"""Render SVG with resvg. Imported only where something is rendered: resvg_py is optional."""

import io

import resvg_py
from PIL import Image

from prompt_serve.research.iconbench.icons import sized

RESVG = str(resvg_py.__version__)


def draw(svg: str, size: int) -> Image.Image:
    """Render a document of ``whole_svg`` to (size, size) RGBA.

    Raises:
        ValueError: resvg cannot render it.
    """
    png = resvg_py.svg_to_bytes(
        svg_string=sized(svg, size), width=size, height=size, skip_system_fonts=True
    )
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    return image if image.size == (size, size) else image.resize((size, size))


def on_background(image: Image.Image, color: tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """Flatten an RGBA image on one color."""
    ground = Image.new("RGBA", image.size, (*color, 255))
    return Image.alpha_composite(ground, image).convert("RGB")
