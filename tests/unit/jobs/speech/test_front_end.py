"""Convolutions as matrix products, against those of transformers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from jobs.speech.front_end import CHUNK_FRAMES, FrontEnd
from tests.encoders import FAMILY, small_encoder, speechlike

SECONDS = (0.1, 2.5, 0.9)


@pytest.mark.parametrize("name", FAMILY)
def test_both_ways_give_what_each_wave_gets_alone(name: str) -> None:
    model = small_encoder(name)
    waves = [torch.from_numpy(wave) for wave in speechlike(*SECONDS)]
    front_end = FrontEnd(model.feature_extractor.conv_layers)
    lengths = [len(wave) for wave in waves]
    assert front_end.grid.num_frames(lengths[1]) > CHUNK_FRAMES
    padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    with torch.inference_mode():
        stock = torch.cat([model.feature_extractor(wave[None])[0].T for wave in waves])
        for frames in (front_end.one_by_one(waves), front_end.together(padded, lengths)):
            torch.testing.assert_close(frames, stock, atol=1e-5, rtol=1e-4)


def test_what_lies_beyond_a_wave_does_not_count() -> None:
    front_end = FrontEnd(small_encoder("hubert base").feature_extractor.conv_layers)
    (wave,) = (torch.from_numpy(w) for w in speechlike(0.5))
    rows = torch.stack([torch.nn.functional.pad(wave, (0, 8_000), value=v) for v in (0.0, 100.0)])
    with torch.inference_mode():
        first, second = front_end.together(rows, [len(wave)] * 2).chunk(2)
    assert torch.equal(first, second)


def test_an_offset_and_a_faint_wave_are_normed_as_exactly() -> None:
    """Mean and variance come of products in float64, in which they do not cancel."""
    model = small_encoder("hubert base").double()
    exact = FrontEnd(small_encoder("hubert base").feature_extractor.conv_layers)
    (wave,) = speechlike(1.0)
    shifted = torch.from_numpy((1e-3 * wave + 0.5).astype(np.float32))
    with torch.inference_mode():
        stock = model.feature_extractor(shifted.double()[None])[0].T
        torch.testing.assert_close(exact.one_by_one([shifted]).double(), stock, atol=1e-6, rtol=0)


def test_the_moments_of_a_long_wave_take_little_memory_and_are_the_same() -> None:
    front_end = FrontEnd(small_encoder("hubert base").feature_extractor.conv_layers)
    wave = torch.from_numpy(speechlike(100.0)[0])
    lengths = torch.tensor([len(wave)])
    for mine, whole in zip(
        front_end.first.of_wave(wave), front_end.first.of_waves(wave[None], lengths), strict=True
    ):
        torch.testing.assert_close(mine, whole[0], atol=0, rtol=1e-6)
