"""The encoder on the device of this machine: a GPU where there is one, in the same ways on a CPU.

Needs torch, transformers and pytest alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from benchmarks.gpu.figures import Setting
from benchmarks.gpu.memory_limit import figures as of_limited_memory
from jobs.speech import attention
from jobs.speech.lloyd import nearest
from jobs.speech.replays import Bucket, Recorder
from jobs.speech.speech_encoder import Precision, SpeechEncoder
from tests.encoders import FAMILY, small_encoder, speechlike, stock_features

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if HAS_GPU else "cpu")
NUM_CLUSTERS = 100
SECONDS = (0.1, 0.3, 0.55, 0.9, 1.3, 2.2, 3.0, 8.0)
gpu = pytest.mark.skipif(not HAS_GPU, reason="needs a GPU that torch can use")


def _encoder(name: str, precision: Precision = "fp32", *, replayed: bool = False) -> SpeechEncoder:
    return SpeechEncoder(
        small_encoder(name),
        2,
        device=DEVICE,
        precision=precision,
        all_at_once=True,  # as it is on a GPU
        record=Recorder() if replayed else None,
    )


@pytest.mark.parametrize("name", FAMILY)
def test_a_batch_gives_the_units_of_waves_alone(name: str) -> None:
    """Those of transformers on a CPU, but for ties."""
    waves = speechlike(*SECONDS)
    alone = torch.cat(stock_features(small_encoder(name), waves, 2))
    feats = torch.cat(_encoder(name).features(waves)).cpu()
    torch.testing.assert_close(feats, alone, atol=2e-4, rtol=1e-3)
    centroids = alone[torch.linspace(0, len(alone) - 1, NUM_CLUSTERS).long()]
    found, expected = nearest(feats, centroids), nearest(alone, centroids)
    is_tie = found.is_tie_N | expected.is_tie_N
    assert not ((found.index_N != expected.index_N) & ~is_tie).any()


@pytest.mark.parametrize("lengths", [(5, 9, 1, 300), (64, 64, 64)])
def test_attention_without_a_mask_is_that_with_one(lengths: tuple[int, ...]) -> None:
    """FlashAttention over waves of any length on a GPU, in 16 bits; else one wave after another."""
    dtype = torch.bfloat16 if HAS_GPU else torch.float32
    torch.manual_seed(0)
    qkv = torch.randn(sum(lengths), 3, 4, 64, device=DEVICE, dtype=dtype)
    rows = attention.Rows(max(lengths), torch.tensor(lengths, device=DEVICE))
    padded = attention.by_wave(qkv.flatten(1), lengths)
    in_rows = attention.attended(padded.view(-1, *qkv.shape[1:]), rows)[rows.is_wave.flatten()]
    masked = attention._with_mask(padded.view(-1, *qkv.shape[1:]), rows)[rows.is_wave.flatten()]
    for found in (attention.attended(qkv, lengths), in_rows):
        torch.testing.assert_close(found, masked, atol=2e-2 if HAS_GPU else 1e-5, rtol=1e-2)


def test_waves_arrive_whole_while_the_memory_they_left_from_is_used_again() -> None:
    """The copy to a GPU is still under way when the next batch is laid out."""
    encoder = _encoder("hubert base")
    batches = [[torch.full((200_000,), float(n)) for _ in range(4)] for n in range(20)]
    brought = [encoder._brought(batch, Bucket(5, 200_001)) for batch in batches]
    for number, wav_BS in enumerate(brought):
        assert wav_BS.device.type == DEVICE.type
        assert (wav_BS[:4, :-1] == number).all()
        assert not wav_BS[4].any()
        assert not wav_BS[:, -1].any()


def test_a_batch_that_memory_is_too_small_for_is_halved() -> None:
    halved, refused = of_limited_memory(Setting(device=DEVICE.type, is_tiny=not HAS_GPU))
    assert halved.note.startswith("halved ")
    # A CPU's memory is everybody's: another time the window may fit.
    refusal = "corpus.windows.max_s: a window of " if HAS_GPU else "CUDA out of memory"
    assert refused.note.startswith(refusal)


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", ["hubert base", "hubert large", "mhubert 25 Hz"])
def test_a_replayed_graph_gives_what_is_computed(name: str, precision: Precision) -> None:
    replayed, usual = _encoder(name, precision, replayed=True), _encoder(name, precision)
    for seed in range(3):
        waves = speechlike(*(7.0 + 0.05 * n for n in range(8)), seed=seed)
        found, expected = (torch.cat(e.features(waves)) for e in (replayed, usual))
        atol = 2e-4 if precision == "fp32" else 5e-2
        torch.testing.assert_close(found, expected, atol=atol, rtol=1e-2)
    assert replayed._replays is not None
    recorded = replayed._replays._recorded.values()
    assert recorded
    assert all(recorded)


@pytest.fixture
def _products_in_tf32() -> Iterator[None]:
    torch.backends.cuda.matmul.allow_tf32 = True
    yield
    torch.backends.cuda.matmul.allow_tf32 = False


@gpu
@pytest.mark.gpu
@pytest.mark.usefixtures("_products_in_tf32")
def test_an_encoder_forbids_the_rounding_of_tf32() -> None:
    _encoder("hubert base")
    one = torch.ones(64, 64, device=DEVICE) + 2**-12
    assert (one @ torch.eye(64, device=DEVICE) == one).all()
