"""Codebooks: k-means against every partition, gradients against the graph without a codebook, and
when a new one is made."""

from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from prompt_serve.errors import PromptFileInvalid
from prompt_serve.prompts.quantized_tensor import BITS, dequantize
from prompt_serve.training.methods.base import to_float16
from prompt_serve.training.quantization.codebook import (
    AdaptiveCodebook,
    CodebookSettings,
    histogram_divergence,
    nearest,
    quantized,
    saves_bytes,
)
from prompt_serve.training.quantization.kmeans import MAX_POINTS, cluster_centers

Numbers = NDArray[np.float64]


def codebook(values: Tensor, bits: int = 2, **settings: Any) -> AdaptiveCodebook:
    made = CodebookSettings(bits=bits, **settings).new_codebook(values)
    assert made is not None
    return made


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(values: Numbers, centers: Numbers) -> float:
    return float(np.square(values[:, None] - centers).min(axis=1).sum())


def best_error(values: Numbers, count: int) -> float:
    """Over all ways to cut the sorted values into ``count`` runs."""
    values = np.sort(values)
    return min(
        sum(
            float(np.square(values[a:b] - values[a:b].mean()).sum())
            for a, b in pairwise([0, *cuts, len(values)])
        )
        for cuts in combinations(range(1, len(values)), count - 1)
    )


# --- k-means --------------------------------------------------------------------------------


def test_clusters_that_stand_apart_are_found(rng: np.random.Generator) -> None:
    for count in (2, 4):
        middles = np.arange(count) * 10.0
        values = rng.permutation(np.concatenate([m + rng.uniform(-1, 1, size=4) for m in middles]))
        centers = cluster_centers(values, count)
        assert error(values, centers) == pytest.approx(best_error(values, count), rel=1e-9)


def test_centers_are_the_means_of_what_is_nearest_to_them(rng: np.random.Generator) -> None:
    for count in (2, 4, 16):
        values = rng.normal(size=2_048)
        centers = cluster_centers(values, count)
        chosen = np.abs(values[:, None] - centers).argmin(axis=1)
        means = [values[chosen == k].mean() for k in range(count)]
        # Fifty steps are not always enough to stand still with 16; half a per cent is near.
        np.testing.assert_allclose(centers, means, atol=5e-3)
        assert (np.diff(centers) > 0).all()


def test_the_error_is_near_that_of_the_best_partition(rng: np.random.Generator) -> None:
    ratios = []
    for count in (2, 4):
        for _ in range(20):
            values = rng.normal(size=12)
            best = best_error(values, count)
            ratios.append(error(values, cluster_centers(values, count)) / best)
    # Lloyd's algorithm stops in a local optimum. A dozen numbers are the worst case: of thousands
    # the centers are those of their distribution, as the next test has it.
    assert min(ratios) >= 1.0 - 1e-9
    print(f"error over the best: mean {np.mean(ratios):.3f}, largest {max(ratios):.3f}")
    assert np.mean(ratios) < 1.5
    assert np.median(ratios) < 1.1


def test_two_halves_of_a_normal_distribution_are_found() -> None:
    """The best two centers of N(0, 1) are +-sqrt(2 / pi), the best four +-0.4528 and +-1.510
    (Lloyd 1982, Max 1960)."""
    values = normal(200_000).double().numpy()
    np.testing.assert_allclose(cluster_centers(values, 2), [-0.7979, 0.7979], atol=0.01)
    np.testing.assert_allclose(
        cluster_centers(values, 4), [-1.510, -0.4528, 0.4528, 1.510], atol=0.02
    )


def test_bins_of_a_large_tensor_change_the_centers_little(rng: np.random.Generator) -> None:
    values = rng.normal(size=MAX_POINTS)
    many = np.concatenate([values, values])  # twice as many, and so binned
    np.testing.assert_allclose(cluster_centers(many, 16), cluster_centers(values, 16), atol=5e-3)


def test_order_plays_no_part(rng: np.random.Generator) -> None:
    values = rng.normal(size=300)
    first = cluster_centers(values, 16)
    assert (cluster_centers(rng.permutation(values), 16) == first).all()
    assert (cluster_centers(values, 16) == first).all()


@pytest.mark.parametrize("values", [[1.0] * 9, [1.0, 2.0, 2.0], [0.25]])
def test_fewer_distinct_values_than_centers_come_back_exactly(values: list[float]) -> None:
    for bits in BITS:
        coded = quantized(np.array(values, np.float16), bits)
        # Scaled and scaled back in float32, then rounded to float16.
        np.testing.assert_allclose(dequantize(coded).astype(float), values, rtol=1e-3)


# --- the forward and the gradient -----------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
def test_what_is_learned_on_is_what_is_stored_bit_for_bit(bits: int) -> None:
    for seed, scale in enumerate((1e-3, 0.02, 1.0, 30.0)):
        values = normal(4, 512, seed=seed) * scale + scale
        seen = codebook(values, bits)(values)
        coded = codebook(values, bits).coded(values)
        assert (seen.numpy() == dequantize(coded).astype(np.float32)).all()
        assert coded.bits == bits
        assert len(np.unique(seen)) <= 2**bits


def test_each_number_becomes_the_nearest_center_of_the_normalized() -> None:
    values = normal(4, 32) * 0.3 + 2.0
    learner = codebook(values, 2)
    mean, std = values.double().mean(), values.double().std(correction=0)
    expected = []
    for number in ((values.double() - mean) / std).flatten():
        center = min(learner.centers.double(), key=lambda c, x=number: abs(float(c - x)))  # type: ignore[misc]  # bound at once
        expected.append(float(std * center + mean))
    # float16 keeps 11 bits of numbers near 2.
    np.testing.assert_allclose(learner(values).flatten().numpy(), expected, atol=2e-3)


def test_the_gradient_is_that_of_the_plain_graph_at_the_quantized_point() -> None:
    values = normal(4, 32).requires_grad_()
    weights = normal(32, 5, seed=1)

    def loss(vectors: Tensor) -> Tensor:
        return (vectors @ weights).softmax(-1)[:, 0].log().square().sum()

    seen = codebook(values)(values)
    (through,) = torch.autograd.grad(loss(seen), [values])
    plain = seen.detach().clone().requires_grad_()
    (expected,) = torch.autograd.grad(loss(plain), [plain])
    assert torch.equal(through, expected)
    assert float(expected.abs().max()) > 0


def test_an_empty_tensor_has_a_codebook_too() -> None:
    empty = torch.zeros(0, 4)
    assert codebook(empty)(empty).shape == (0, 4)
    assert quantized(np.zeros((0, 4), np.float16), 1).shape == (0, 4)


def test_diverged_numbers_are_refused_with_the_way_out() -> None:
    for broken in (np.nan, np.inf):
        with pytest.raises(PromptFileInvalid, match="smaller learning rate"):
            quantized(np.array([1.0, broken, 2.0], np.float16), 1)
    values = normal(4, 32)
    learner = codebook(values)
    learner.after_update(values * torch.nan, 49)
    with pytest.raises(PromptFileInvalid, match="smaller learning rate"):
        learner.coded(values * torch.nan)


def test_ptq_codes_what_qat_starts_with() -> None:
    values = normal(4, 512) * 0.1
    rounded = to_float16(values)
    after = quantized(rounded, 4)
    before = codebook(torch.from_numpy(rounded.astype(np.float32)), 4)
    while_learning = before.coded(torch.from_numpy(rounded.astype(np.float32)))
    assert (after.indices == while_learning.indices).all()
    assert after.codebook.tobytes() == while_learning.codebook.tobytes()


def test_more_bits_come_nearer() -> None:
    values = to_float16(normal(4, 512))
    errors = [
        float(np.square(dequantize(quantized(values, bits)).astype(float) - values).mean())
        for bits in BITS
    ]
    assert errors[0] > 3 * errors[1] > 15 * errors[2] > 150 * errors[3]
    # Of N(0, 1) the best one-bit code leaves 1 - 2 / pi, the best two-bit code 0.1175.
    assert errors[:2] == pytest.approx([0.363, 0.1175], rel=0.1)


@pytest.mark.parametrize(
    ("size", "bits", "worthwhile"),
    [(4, 1, True), (4, 2, False), (2_048, 8, True), (512, 8, False), (512, 4, True), (0, 1, False)],
)
def test_a_codebook_must_save_bytes(size: int, bits: int, worthwhile: bool) -> None:
    assert saves_bytes(size, bits) is worthwhile


# --- adaptive clustering --------------------------------------------------------------------


def test_divergence_is_that_of_the_smoothed_histograms() -> None:
    p, q = np.array([30.5, 10.5]) / 41, np.array([20.5, 20.5]) / 41
    expected = float((p * np.log(p / q)).sum())
    found = histogram_divergence(torch.tensor([30, 10]), torch.tensor([20, 20]))
    assert found == pytest.approx(expected, rel=1e-12)
    assert histogram_divergence(torch.tensor([7, 3]), torch.tensor([7, 3])) == 0.0


def test_divergence_is_finite_where_bins_are_empty() -> None:
    values = normal(4, 8)  # 32 numbers, 256 centers
    learner = codebook(values, 8, recluster_above=100.0)
    learner.after_update(normal(4, 8, seed=1).exp(), 49)
    assert 0.0 < float(learner.divergence) < 100.0
    far = histogram_divergence(torch.tensor([0, 2_048]), torch.tensor([2_048, 0]))
    assert np.isfinite(far)


def test_a_mere_change_of_scale_or_place_asks_for_nothing() -> None:
    values = normal(4, 512)
    learner = codebook(values, 4, recluster_above=0.0)
    # Powers of two and their sums leave every rounding as it was.
    learner.after_update(values * 8.0, 49)
    assert float(learner.divergence) == 0.0
    assert int(learner.reclusterings) == 0


def test_another_distribution_asks_for_a_new_codebook_which_fits_better() -> None:
    values, skewed = normal(4, 512), normal(4, 512, seed=1).exp()
    learner = codebook(values, 2)
    before = learner.centers.clone()

    def distance() -> float:
        return float((learner(skewed) - skewed).square().mean())

    old_error = distance()
    learner.after_update(skewed, 48)
    assert int(learner.reclusterings) == 0  # not yet: every 50 steps only
    learner.after_update(skewed, 49)
    assert int(learner.reclusterings) == 1
    assert float(learner.divergence) > 0.01
    assert not torch.equal(learner.centers, before)
    assert distance() < old_error
    learner.after_update(skewed, 99)
    assert int(learner.reclusterings) == 1  # the numbers are those it was made for
    assert float(learner.divergence) == 0.0


def test_the_condition_on_the_error_holds_a_new_codebook_back() -> None:
    wide = normal(4, 512)
    narrow = torch.where(wide > 0, 1.0, -1.0) + 0.01 * wide  # two heaps: nearly no error
    histograms_differ = torch.cat([narrow.flatten()[:1500], narrow.flatten()[:548].abs()])
    for on_error, count in ((False, 1), (True, 0)):
        learner = codebook(
            wide, 1, recluster_on_error=on_error, recluster_above=1e-4, recluster_interval=1
        )
        learner.after_update(histograms_differ.reshape(4, 512), 0)
        assert int(learner.reclusterings) == count


def test_a_threshold_of_its_own_and_an_interval_are_kept() -> None:
    values, other = normal(4, 512), normal(4, 512, seed=1).exp()
    never = codebook(values, 2, recluster_above=100.0, recluster_interval=3)
    for step in range(12):
        never.after_update(other, step)
    assert int(never.reclusterings) == 0
    often = codebook(values, 2, recluster_interval=3)
    for step in range(12):
        often.after_update(other if step // 3 % 2 else values, step)
    assert int(often.reclusterings) == 3  # at steps 6, 9 and 12; at 3 nothing had changed


def test_all_state_is_in_buffers() -> None:
    values, other = normal(4, 512), normal(4, 512, seed=1).exp()
    learner = codebook(values, 2)
    learner.after_update(other, 49)
    fresh = codebook(values, 2)
    fresh.load_state_dict(learner.state_dict())
    assert torch.equal(fresh(other), learner(other))
    for moved in (learner, fresh):
        moved.after_update(other * other, 99)
    assert int(fresh.reclusterings) == int(learner.reclusterings) == 2
    assert torch.equal(fresh.centers, learner.centers)
    assert torch.equal(fresh.anchor, learner.anchor)


def test_of_two_centers_equally_near_the_lower_is_taken() -> None:
    centers = torch.tensor([-1.0, 1.0, 3.0])
    assert nearest(torch.tensor([-5.0, 0.0, 0.5, 2.0, 9.0]), centers).tolist() == [0, 0, 1, 1, 2]
