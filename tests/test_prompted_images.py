"""Images of many tasks in one batch, each with the vectors of its own task."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from prompt_serve.bundle import open_bundle, shipped_bundle
from prompt_serve.engines.encoders import Encoders
from prompt_serve.engines.onnx_session import CPU, open_session
from prompt_serve.errors import BackboneUnsupported, PromptFileInvalid
from prompt_serve.export.build import export_bundle
from prompt_serve.export.prompted_parity import Vectors, every_kind, features_with
from prompt_serve.export.samples import random_pixels
from prompt_serve.prompts.image_rows import ImageRows, image_inputs
from prompt_serve.prompts.prompt_vectors import PromptVectors
from prompt_serve.training.clip.backbone import Backbone, load_backbone
from prompt_serve.types import FloatArray
from tests.backbones import write_tiny_backbone
from tests.ready_graphs import ready_graphs

LAYERS, WIDTH = 2, 64  # of the tiny backbone's image tower


@pytest.fixture(scope="module")
def encoders(tiny_bundle: Path) -> Encoders:
    return Encoders.open(open_bundle(tiny_bundle), cuda_device=None, threads=1)


@pytest.fixture(scope="module")
def int8_bundle(
    tiny_backbone: Backbone, tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("int8") / "bundle"
    with ready_graphs(tiny_bundle):
        export_bundle(tiny_backbone, folder, precision="int8")
    return folder


@pytest.fixture(scope="module")
def shipped() -> tuple[Backbone, Encoders]:
    bundle = open_bundle(shipped_bundle("embedded-vit"))
    return load_backbone("embedded-vit"), Encoders.open(bundle, cuda_device=None, threads=1)


def mixes(count: int, layers: int, width: int) -> Iterator[list[Vectors]]:
    """Generate batches of one to nine images whose tasks differ in kind, depth and length."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield [random_vectors(rng, layers, width) for _ in range(rng.integers(1, 10))]


def random_vectors(rng: np.random.Generator, layers: int, width: int) -> Vectors:
    def vectors(least: int, most: int) -> FloatArray:
        scale = 10.0 ** rng.uniform(-3, 1)
        made: FloatArray = scale * rng.standard_normal((rng.integers(least, most + 1), width))
        return made.astype(np.float32)

    kind = rng.integers(0, 4)
    if kind == 0:
        return PromptVectors()
    context = vectors(1, 6) if kind != 1 else None
    depth = 0 if context is None else rng.integers(0, layers)
    deeper = tuple(rng.permutation(context) for _ in range(depth)) if context is not None else ()
    rows = tuple(vectors(0, 5) for _ in range(layers)) if kind != 2 else ()
    return PromptVectors(context=context, deeper=deeper, keys_values=rows)


def largest_difference(backbone: Backbone, encoders: Encoders, batch: list[Vectors]) -> float:
    """Compare a mixed batch with PyTorch, which takes one task at a time."""
    pixels = random_pixels(backbone.preprocessing, count=len(batch))
    rows = [encoders.prompted.lay_out(vectors) for vectors in batch]
    expected = [features_with(backbone, pixels[i : i + 1], v) for i, v in enumerate(batch)]
    return float(np.abs(encoders.prompted.encode(pixels, rows) - np.concatenate(expected)).max())


def test_each_answer_of_a_mixed_batch_is_that_of_its_task_alone(
    shipped: tuple[Backbone, Encoders],
) -> None:
    backbone, encoders = shipped

    for batch in mixes(15, backbone.image_tower.layers, backbone.image_tower.width):
        # Logits are features times 100.
        assert largest_difference(backbone, encoders, batch) < 1e-6


@pytest.mark.long
def test_a_thousand_mixes(shipped: tuple[Backbone, Encoders]) -> None:
    backbone, encoders = shipped

    for batch in mixes(1000, backbone.image_tower.layers, backbone.image_tower.width):
        assert largest_difference(backbone, encoders, batch) < 1e-6


def test_images_without_vectors_are_those_of_the_plain_graph(encoders: Encoders) -> None:
    pixels = random_pixels(encoders.preprocessing, count=3)

    np.testing.assert_allclose(
        encoders.prompted.encode(pixels, [None] * 3), encoders.encode_pixels(pixels), atol=1e-6
    )


def test_rows_in_steps_of_powers_of_two_change_nothing(
    tiny_bundle: Path, encoders: Encoders
) -> None:
    graph = open_session(open_bundle(tiny_bundle).prompted_image_encoder, CPU, threads=1)
    shapes = set()
    for batch in mixes(20, LAYERS, WIDTH):
        pixels = random_pixels(encoders.preprocessing, count=len(batch))
        rows = [encoders.prompted.lay_out(vectors) for vectors in batch]
        inputs = image_inputs(rows, layers=LAYERS, width=WIDTH, in_steps=True)
        shapes |= {inputs["rows"].shape[1], inputs["keys"].shape[2]}

        (features,) = graph.run(["image_features"], {"pixels": pixels, **inputs})

        np.testing.assert_allclose(features, encoders.prompted.encode(pixels, rows), atol=1e-6)
    assert shapes <= {1, 2, 4, 8, 16}


@pytest.mark.long
@pytest.mark.parametrize(("pool", "final_ln_after_pool"), [("tok", True), ("avg", False)])
def test_towers_that_pool_otherwise(pool: str, final_ln_after_pool: bool, tmp_path: Path) -> None:
    folder = write_tiny_backbone(tmp_path / "backbone")
    settings = folder / "config.json"
    text = settings.read_text().replace(
        '"vision_cfg": {',
        f'"vision_cfg": {{"pool_type": "{pool}", '
        f'"final_ln_after_pool": {str(final_ln_after_pool).lower()}, ',
    )
    settings.write_text(text)
    backbone = load_backbone(str(folder))

    manifest = export_bundle(backbone, tmp_path / "bundle")  # raises where the graphs differ

    assert manifest.parity["image_prompted"] < 1e-6
    assert manifest.parity["image_random"] < 1e-6


def test_a_batch_of_an_int8_tower_is_not_disturbed_more_by_extreme_vectors_than_by_an_image(
    int8_bundle: Path,
) -> None:
    encoders = Encoders.open(open_bundle(int8_bundle), cuda_device=None, threads=1)
    pixels = random_pixels(encoders.preprocessing, count=5)
    alone = np.concatenate([encoders.prompted.encode(p[np.newaxis], [None]) for p in pixels])
    hot = np.zeros((4, WIDTH), dtype=np.float32)
    hot[range(4), range(4)] = 1e4
    extremes: list[Vectors] = [
        PromptVectors(context=hot),
        PromptVectors(context=hot, deeper=(hot,)),
        PromptVectors(keys_values=(hot, hot)),
        PromptVectors(keys_values=(-hot, 6.5 * hot)),  # as large as they may be
        PromptVectors(context=1e3 * np.ones((4, WIDTH), dtype=np.float32)),
    ]

    for vectors in extremes:
        beside = encoders.prompted.encode(
            np.concatenate([pixels, pixels[:1]]),
            [None] * 5 + [encoders.prompted.lay_out(vectors)],
        )
        # A layer norm precedes every product, so the size of vectors does not reach the scales.
        assert np.abs(beside[:5] - alone).max() < 0.03


@pytest.mark.parametrize("fixture", ["tiny_bundle", "int8_bundle"])
def test_both_image_graphs_share_their_weights(
    fixture: str, request: pytest.FixtureRequest
) -> None:
    bundle = open_bundle(request.getfixturevalue(fixture))

    graph = onnx.load(bundle.prompted_image_encoder, load_external_data=False).graph
    places = [t for t in graph.initializer if t.data_location == TensorProto.EXTERNAL]
    inside = sum(t.ByteSize() for t in graph.initializer if t not in places)

    files = {entry.value for t in places for entry in t.external_data if entry.key == "location"}
    assert files == {"image_encoder.onnx"}
    assert inside < 0.1 * bundle.image_encoder.stat().st_size


def test_a_convolutional_tower_takes_no_vectors() -> None:
    bundle = open_bundle(shipped_bundle("embedded"))
    assert bundle.manifest.image_tower is None

    encoders = Encoders.open(bundle, cuda_device=None, threads=1)
    with pytest.raises(BackboneUnsupported, match=r"'embedded-vit' or ViT-B-16"):
        _ = encoders.prompted


def zeros(*shape: int) -> FloatArray:
    return np.zeros(shape, dtype=np.float32)


@pytest.mark.parametrize(
    "vectors",
    [
        PromptVectors(context=zeros(2, WIDTH + 1)),
        PromptVectors(context=zeros(2, WIDTH), deeper=(zeros(2, WIDTH),) * LAYERS),
        PromptVectors(keys_values=(zeros(2, WIDTH),)),
        PromptVectors(keys_values=(zeros(2, WIDTH),) * (LAYERS + 1)),
        PromptVectors(keys_values=(zeros(2, 3),) * LAYERS),
    ],
)
def test_vectors_of_another_tower_are_refused(vectors: Vectors, encoders: Encoders) -> None:
    with pytest.raises(PromptFileInvalid, match=rf"{LAYERS} blocks and is {WIDTH} wide"):
        encoders.prompted.lay_out(vectors)


def test_equal_vectors_have_equal_rows(encoders: Encoders) -> None:
    kinds = [*every_kind(LAYERS, WIDTH, np.random.default_rng(0))]
    again = [*every_kind(LAYERS, WIDTH, np.random.default_rng(0))]
    rows = [encoders.prompted.lay_out(v) for v in (*kinds, *again)]
    digests = [of.digest for of in rows if of is not None]

    assert len(digests) == 10
    assert len(set(digests)) == 5
    assert digests[:5] == digests[5:]


def test_rows_that_nobody_reads_do_not_enter_the_sequence(encoders: Encoders) -> None:
    rng = np.random.default_rng(0)
    context, deeper = (rng.standard_normal((3, WIDTH)).astype(np.float32) for _ in range(2))

    whole = encoders.prompted.lay_out(PromptVectors(context=context, deeper=(deeper,)))
    shallow = encoders.prompted.lay_out(PromptVectors(context=context))

    assert isinstance(whole, ImageRows)
    assert isinstance(shallow, ImageRows)
    assert (len(whole.entering), [len(keys) for keys in whole.keys]) == (0, [3, 3])
    assert (len(shallow.entering), [len(keys) for keys in shallow.keys]) == (3, [0, 0])
    inputs = image_inputs([None, shallow], layers=LAYERS, width=WIDTH)
    assert inputs["rows_used"].tolist() == [[False] * 3, [True] * 3]
    assert not inputs["keys_used"].any()
