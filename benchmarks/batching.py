"""Exact padded batches over batch size 1, interleaved: ``python -m benchmarks.batching``.

Prints the ratio of audio seconds per second with its spread over the rounds, and how many units
differ.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from transformers import HubertConfig, HubertModel

from jobs.speech.grid import plan_batches
from jobs.speech.speech_encoder import SpeechEncoder, Wave
from orchestrator.quantities import SAMPLE_RATE_HZ

LENGTHS_S = (0.5, 12.0)


def main() -> None:
    """Run the comparison on a small HuBERT with random weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--utterances", type=int, default=24)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    lengths = rng.uniform(*LENGTHS_S, options.utterances) * SAMPLE_RATE_HZ
    waves = [rng.normal(0, 0.1, int(n)).astype(np.float32) for n in lengths]
    encoder = SpeechEncoder(HubertModel(_config()).eval(), layer=4)
    codebook_KD = torch.randn(100, encoder.dim)
    ratios, differing = [], 0
    for _ in range(options.rounds):
        alone_s, alone = _timed(encoder, waves, [[i] for i in range(len(waves))])
        batched_s, batched = _timed(
            encoder, waves, plan_batches([len(w) for w in waves], encoder.max_padded_samples)
        )
        ratios.append(alone_s / batched_s)
        differing = sum(
            _num_different(a, b, codebook_KD) for a, b in zip(alone, batched, strict=True)
        )
    print(f"audio: {sum(lengths) / SAMPLE_RATE_HZ:.0f} s in {len(waves)} utterances, 1 thread")
    print(
        f"batched over alone: {statistics.median(ratios):.2f} x "
        f"({min(ratios):.2f} to {max(ratios):.2f})"
    )
    print(f"units that differ: {differing}")


def _config() -> HubertConfig:
    return HubertConfig(
        hidden_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=768,
        conv_dim=(32, 64, 128, 192, 192),
        conv_kernel=(10, 8, 4, 4, 4),
        conv_stride=(5, 4, 4, 2, 2),
        num_feat_extract_layers=5,
    )


def _timed(
    encoder: SpeechEncoder, waves: list[Wave], batches: list[list[int]]
) -> tuple[float, list[torch.Tensor]]:
    feats: list[torch.Tensor] = [torch.empty(0)] * len(waves)
    started = time.perf_counter()
    for batch in batches:
        for i, feats_TD in zip(batch, encoder.features([waves[i] for i in batch]), strict=True):
            feats[i] = feats_TD
    return time.perf_counter() - started, feats


def _num_different(one_TD: torch.Tensor, other_TD: torch.Tensor, codebook_KD: torch.Tensor) -> int:
    units = [torch.cdist(x, codebook_KD).argmin(1) for x in (one_TD, other_TD)]
    return int((units[0] != units[1]).sum())


if __name__ == "__main__":
    main()
