"""The transformer over frames of many waves; the whole path is in tests/numerics."""

from __future__ import annotations

import pytest
import torch

from jobs.speech.attention import Rows
from jobs.speech.transformer import Transformer
from tests.encoders import FAMILY, small_encoder

LENGTHS = (3, 40, 1)


@pytest.mark.parametrize("name", FAMILY)
def test_a_wave_is_the_same_beside_any_other(name: str) -> None:
    transformer = Transformer(small_encoder(name), 3).eval()
    torch.manual_seed(1)
    frames = torch.randn(sum(LENGTHS), FAMILY[name][2]["conv_dim"][-1])
    with torch.inference_mode():
        together = transformer(frames, LENGTHS).split(LENGTHS)
        for part, feats in zip(frames.split(LENGTHS), together, strict=True):
            torch.testing.assert_close(feats, transformer(part, [len(part)]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in FAMILY if not name.startswith("wavlm")])
def test_a_wave_is_the_same_in_a_row(name: str) -> None:
    transformer = Transformer(small_encoder(name), 3).eval()
    torch.manual_seed(1)
    rows = Rows(48, torch.tensor(LENGTHS))
    frames = torch.randn(48 * len(LENGTHS), FAMILY[name][2]["conv_dim"][-1])
    kept = rows.is_wave.flatten()
    with torch.inference_mode():
        expected = transformer(frames[kept], LENGTHS)
        torch.testing.assert_close(transformer(frames, rows)[kept], expected, atol=1e-5, rtol=1e-4)


def test_a_position_bias_is_not_computed_in_rows() -> None:
    transformer = Transformer(small_encoder("wavlm base"), 1)
    with pytest.raises(TypeError, match="needs the length of each wave"):
        transformer(torch.randn(8, 64), Rows(8, torch.tensor([3])))
