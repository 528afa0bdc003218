"""Buckets and recordings; on a CPU a recording is the function itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from jobs.speech.grid import Grid
from jobs.speech.replays import Bucket, Function, Replays, bucket_of
from jobs.speech.speech_encoder import SpeechEncoder
from tests.encoders import FAMILY, small_encoder, speechlike

GRID = Grid(320, 400)
MOST = 60 * 16_000


@pytest.mark.parametrize("seconds", [0.5, 1.3, 3.0, 7.9, 15.0, 29.9])
def test_a_bucket_is_hardly_larger_than_a_full_batch(seconds: float) -> None:
    longest = int(seconds * 16_000)
    full = [longest] * (MOST // longest)
    bucket = bucket_of(full, GRID, MOST)
    assert bucket is not None
    assert len(full) <= bucket.num_rows
    assert longest <= bucket.num_samples <= max(1.13 * longest, longest + 9 * 320)
    assert len(full) * longest >= 0.75 * bucket.num_rows * bucket.num_samples


def test_few_lengths_make_few_buckets() -> None:
    found = {bucket_of([n] * (MOST // n), GRID, MOST) for n in range(16_000, 480_000, 100)}
    assert len(found) < 45


def test_a_batch_that_would_leave_a_bucket_empty_has_none() -> None:
    assert bucket_of([80_000] * 3, GRID, MOST) is None
    assert bucket_of([80_000] * 11, GRID, MOST)
    assert bucket_of([80_000] + [3_000] * 11, GRID, MOST) is None
    assert bucket_of([1_600] * 600, GRID, MOST) is None  # nor have waves of a few frames


class _Recorder:
    """Counts what is recorded; a replay computes anew, and adds what is given."""

    def __init__(self, off_by: float = 0.0) -> None:
        self.off_by, self.shapes = off_by, list[tuple[int, ...]]()

    def __call__(
        self, function: Function, wav_BS: Tensor, lengths_B: Tensor
    ) -> Callable[[], Tensor]:
        self.shapes.append(tuple(wav_BS.shape))
        return lambda: function(wav_BS, lengths_B) + self.off_by


def test_each_bucket_is_recorded_once_and_replayed_on_what_comes() -> None:
    recorder = _Recorder()
    replays = Replays(lambda wav_BS, lengths_B: wav_BS * lengths_B[:, None], recorder)
    lengths = torch.tensor([1, 2])
    for value in (1.0, 2.0):
        found = replays(torch.full(Bucket(2, 3), value), lengths)
        assert found.tolist() == [[value] * 3, [2 * value] * 3]
    assert recorder.shapes == [(2, 3)]
    assert replays.forget()
    assert not replays.forget()


def test_a_replay_that_gives_something_else_is_not_used() -> None:
    recorder = _Recorder(off_by=0.1)
    replays = Replays(lambda wav_BS, _lengths_B: wav_BS, recorder)
    for _ in range(2):
        assert replays(torch.zeros(2, 3), torch.tensor([3, 3])).sum() == 0
    assert recorder.shapes == [(2, 3)]


def test_what_cannot_be_recorded_is_computed_as_usual() -> None:
    def refuse(*_: object) -> Callable[[], Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing")

    replays = Replays(lambda wav_BS, _lengths_B: wav_BS + 1, refuse)
    assert replays(torch.zeros(2, 3), torch.tensor([3, 3])).sum() == 6


@pytest.mark.parametrize("name", FAMILY)
def test_an_accelerators_ways_give_the_features_of_waves_alone(name: str) -> None:
    recorder = _Recorder()
    waves = speechlike(*(3.0 + 0.05 * n for n in range(5)), 0.01)
    alone = SpeechEncoder(small_encoder(name), 2)
    ways = [
        SpeechEncoder(small_encoder(name), 2, all_at_once=True),
        SpeechEncoder(small_encoder(name), 2, all_at_once=True, record=recorder),
    ]
    for encoder in ways:
        for mine, feats in zip(encoder.features(waves), alone.features(waves), strict=True):
            torch.testing.assert_close(mine, feats, atol=5e-5, rtol=1e-4)
    assert bool(recorder.shapes) != name.startswith("wavlm")
