"""A convolution through frequencies, against torch's."""

from __future__ import annotations

import pytest
import torch

from jobs.speech.long_convolution import LongConvolution


@pytest.mark.parametrize(("num_taps", "groups"), [(128, 16), (16, 2), (5, 1)])
@pytest.mark.parametrize("num_frames", [1, 3, 127, 129, 130, 700])
def test_it_is_the_convolution(num_taps: int, groups: int, num_frames: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 64 // groups, num_taps)
    feats = torch.randn(num_frames, 64)
    direct = torch.nn.functional.conv1d(
        feats.T[None].double(), weight.double(), padding=num_taps // 2, groups=groups
    )[0, :, :num_frames]
    found = LongConvolution(weight, groups)(feats)
    scale = direct.abs().max()
    torch.testing.assert_close(found.double() / scale, direct.T / scale, atol=2e-6, rtol=0)


def test_a_frame_depends_on_the_taps_around_it_alone() -> None:
    torch.manual_seed(0)
    convolution, feats = LongConvolution(torch.randn(8, 8, 32), 1), torch.randn(300, 8)
    longer = torch.cat([feats, torch.randn(200, 8)])
    torch.testing.assert_close(
        convolution(feats)[:280], convolution(longer)[:280], atol=1e-4, rtol=1e-5
    )
