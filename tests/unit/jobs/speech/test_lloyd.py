"""k-means in memory; tests/numerics/test_units_on_ray.py has its blocks on workers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jobs.speech.lloyd import (
    BlocksInMemory,
    add_product,
    add_sums,
    block_sums,
    farthest_frames,
    fit,
    means,
    plus_plus,
)
from orchestrator.errors import DataError

CPU = torch.device("cpu")


def _islands(spread: float = 100) -> torch.Tensor:
    """1,000 frames around 10 points."""
    torch.manual_seed(0)
    centres_KD = spread * torch.randn(10, 4)
    return centres_KD.repeat(100, 1) + torch.randn(1_000, 4)


def test_sums_counts_and_inertia() -> None:
    feats_ND = torch.tensor([[0.0, 0.0], [0.0, 2.0], [10.0, 0.0]])
    sums = block_sums(feats_ND, torch.tensor([[0.0, 0.0], [10.0, 1.0], [99.0, 99.0]]), CPU)
    np.testing.assert_array_equal(sums.sums, [[0, 2], [10, 0], [0, 0]])
    assert sums.sums.dtype == np.float64
    assert sums.counts.tolist() == [2, 1, 0]
    assert sums.inertia == pytest.approx(4 + 1)


def test_blocks_add_up_to_the_whole() -> None:
    feats_ND = _islands()
    centroids_KD = feats_ND[:10]
    whole = block_sums(feats_ND, centroids_KD, CPU)
    parts = block_sums(feats_ND[:300], centroids_KD, CPU) + block_sums(
        feats_ND[300:], centroids_KD, CPU
    )
    np.testing.assert_allclose(parts.sums, whole.sums)
    np.testing.assert_array_equal(parts.counts, whole.counts)
    assert parts.inertia == pytest.approx(whole.inertia)


def test_plus_plus_finds_every_island() -> None:
    feats_MD = _islands(spread=3_000)  # so far apart that missing one has odds of about 1 : 20,000
    centroids_KD = plus_plus(feats_MD, 10, seed=3)
    assert torch.cdist(feats_MD, centroids_KD).min(1).values.max() < 15
    assert torch.equal(centroids_KD, plus_plus(feats_MD, 10, seed=3))
    assert not torch.equal(centroids_KD, plus_plus(feats_MD, 10, seed=4))


def test_the_farthest_frames_come_first() -> None:
    feats_ND = torch.tensor([[1.0], [5.0], [3.0], [-5.0]])
    distance_N, frames_ND = farthest_frames(feats_ND, torch.zeros(1, 1), 3, CPU)
    assert distance_N.tolist() == [25, 25, 9]
    assert frames_ND.tolist() == [[5], [-5], [3]]


def test_empty_clusters_keep_the_fallback() -> None:
    feats_ND = torch.tensor([[0.0], [2.0]])
    sums = block_sums(feats_ND, torch.tensor([[1.0], [50.0]]), CPU)
    assert means(sums, torch.tensor([[7.0], [8.0]])).tolist() == [[1.0], [8.0]]


def test_a_fit_finds_well_separated_groups_whatever_the_blocks() -> None:
    feats_ND = _islands(spread=3_000)
    whole = fit(BlocksInMemory([feats_ND]), 10, seed=3)
    parts = fit(BlocksInMemory(feats_ND.split(137)), 10, seed=3)
    for fitted in (whole, parts):
        assert fitted.num_frames == 1_000
        assert torch.cdist(feats_ND, fitted.centroids).min(1).values.max() < 15
    rows = [fitted.centroids[fitted.centroids[:, 0].argsort()] for fitted in (whole, parts)]
    torch.testing.assert_close(*rows)


def test_a_cluster_without_frames_moves_to_the_farthest_one() -> None:
    feats_ND = torch.tensor([[0.0], [0.0], [0.0], [9.0]] * 2)
    fitted = fit(BlocksInMemory([feats_ND]), 3, seed=0)  # two points for three clusters
    assert sorted(set(fitted.centroids[:, 0].tolist())) == [0.0, 9.0]


def test_too_few_frames_are_the_datas_fault() -> None:
    with pytest.raises(
        DataError, match="num_clusters: 7 frames cannot fit 4 clusters, which need 8"
    ):
        fit(BlocksInMemory([torch.zeros(3, 2), torch.ones(4, 2)]), 4, seed=0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("num_frames", [1, 1_000])
def test_frames_that_are_no_numbers_fit_nothing(value: float, num_frames: int) -> None:
    feats_ND = _islands()
    feats_ND[:num_frames, 2] = value
    with pytest.raises(DataError, match=r"^encoder: its features hold NaN or infinity; "):
        fit(BlocksInMemory([feats_ND[:500], feats_ND[500:]]), 10, seed=0)


def test_sums_as_a_product_are_those_of_frames_one_by_one() -> None:
    feats_ND, index_N = _islands(), torch.arange(1_000) % 7
    one_by_one, product = torch.zeros(2, 10, 4, dtype=torch.float64)
    add_sums(one_by_one, feats_ND, index_N)
    add_product(product, feats_ND, index_N)
    torch.testing.assert_close(product, one_by_one, rtol=1e-12, atol=1e-12)
    assert not product[7:].any()


def test_chunks_change_nothing() -> None:
    """More frames than a chunk has, or none."""
    torch.manual_seed(0)
    feats_ND = torch.randn(3_000, 4)
    sums = block_sums(feats_ND, feats_ND[:10], CPU)
    distance_NK = torch.cdist(feats_ND.double(), feats_ND[:10].double()).square()
    assert sums.counts.tolist() == distance_NK.argmin(1).bincount(minlength=10).tolist()
    assert sums.inertia == pytest.approx(float(distance_NK.amin(1).sum()))
    assert not block_sums(feats_ND[:0], feats_ND[:10], CPU).counts.any()
