"""The pure parts of k-means; tests/numerics/test_units_on_ray.py has it on workers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jobs.speech.kmeans import (
    _means,
    block_sums,
    farthest_frames,
    in_order,
    plus_plus,
    sample_rows,
)

CPU = torch.device("cpu")
IDS = [f"utterance-{n}" for n in range(200)]
ONE_MINUTE = [60 * 16_000] * 200


def _islands(spread: float = 100) -> torch.Tensor:
    """1,000 frames around 10 points."""
    torch.manual_seed(0)
    centres_KD = spread * torch.randn(10, 4)
    return centres_KD.repeat(100, 1) + torch.randn(1_000, 4)


def test_the_sample_has_the_hours_asked_for_in_manifest_order() -> None:
    rows = sample_rows(IDS, ONE_MINUTE, fit_hours=0.5, seed=0)
    assert len(rows) == 30
    assert rows == sorted(rows)
    assert rows != list(range(30))


def test_the_sample_grows_and_depends_on_the_seed() -> None:
    small = set(sample_rows(IDS, ONE_MINUTE, fit_hours=0.5, seed=0))
    assert small < set(sample_rows(IDS, ONE_MINUTE, fit_hours=1.0, seed=0))
    assert small != set(sample_rows(IDS, ONE_MINUTE, fit_hours=0.5, seed=1))
    assert sample_rows(IDS, ONE_MINUTE, fit_hours=99, seed=0) == list(range(200))


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
    assert _means(sums, torch.tensor([[7.0], [8.0]])).tolist() == [[1.0], [8.0]]


def test_answers_are_put_in_order_as_early_as_possible() -> None:
    given = []

    def answers() -> object:
        for number in (2, 0, 1, 3):
            given.append(number)
            yield number, f"answer {number}"

    ordered = in_order(answers())
    assert next(ordered) == "answer 0"
    assert given == [2, 0]
    assert list(ordered) == ["answer 1", "answer 2", "answer 3"]
