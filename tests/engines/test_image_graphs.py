"""Mixed batches, run whole or split between the two image graphs."""

import numpy as np
import pytest

from prompt_serve.bundle import Bundle
from prompt_serve.engines.encoders import Encoders
from prompt_serve.engines.image_graphs import GraphCost, ImageGraphs
from prompt_serve.export.prompted_parity import every_kind
from prompt_serve.export.samples import random_pixels

MIXES = ("10", "01", "0110", "111", "1000000", "0111111", "00000")  # 1: an image with vectors


class AlwaysOrNever(ImageGraphs):
    """Splits every mixed batch, or none."""

    splits = False

    def is_split(self, images: int, prompted: int) -> bool:
        return self.splits


@pytest.fixture(scope="module")
def encoders(bundle: Bundle) -> Encoders:
    return Encoders.open(bundle, cuda_device=None, threads=1)


@pytest.fixture(scope="module", params=[(), (1, 2, 4, 8), (3,)], ids=str)
def graphs(encoders: Encoders, bundle: Bundle, request: pytest.FixtureRequest) -> AlwaysOrNever:
    size = bundle.manifest.image_tower
    assert size is not None
    return AlwaysOrNever(
        encoders.encode_pixels,
        encoders.prompted,
        layers=size.layers,
        width=size.width,
        image_size=bundle.manifest.preprocessing.image_size,
        max_batch=8,
        buckets=request.param,
    )


@pytest.mark.parametrize("splits", [True, False])
@pytest.mark.parametrize("mix", MIXES)
def test_each_image_keeps_its_place_and_vectors(
    mix: str, splits: bool, encoders: Encoders, graphs: AlwaysOrNever, bundle: Bundle
) -> None:
    size = bundle.manifest.image_tower
    assert size is not None
    graphs.splits = splits
    pixels = random_pixels(bundle.manifest.preprocessing, count=len(mix))
    kinds = [*every_kind(size.layers, size.width, np.random.default_rng(0))][:5]
    rows = [
        graphs.lay_out(kinds[index % len(kinds)]) if prompted == "1" else None
        for index, prompted in enumerate(mix)
    ]

    together = graphs.encode(pixels, rows)

    alone = [encoders.prompted.encode(pixels[i : i + 1], rows[i : i + 1]) for i in range(len(mix))]
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-6)


def test_costs_between_one_image_and_a_full_batch_grow_evenly() -> None:
    cost = GraphCost(one=0.1, full=0.8, full_size=8)

    assert [cost.seconds(images) for images in (0, 1, 3, 8)] == pytest.approx([0, 0.1, 0.3, 0.8])
    assert GraphCost(one=0.1, full=0.1, full_size=1).seconds(1) == 0.1
