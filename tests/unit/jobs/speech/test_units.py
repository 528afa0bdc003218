"""Units, shards and codebooks as bytes."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from jobs.audio.corpus_tables import Part
from jobs.audio.roots import Root
from jobs.speech.account import Fate
from jobs.speech.lloyd import Fit, nearest
from jobs.speech.transformer import View
from jobs.speech.units import (
    EncoderSpec,
    ShardResult,
    ShardStats,
    ShardTask,
    Tokenizer,
    WantedUnits,
    create_same,
    deduplicated,
    read_codebook,
    shard_bytes,
    write_codebook,
)
from jobs.speech.utterances import Heard, ShardAudio, Utterance
from jobs.unit_shards import SCHEMA, missing_shards, shard_path
from orchestrator.errors import CorruptError
from orchestrator.ledger.storage import Storage
from orchestrator.spec.recipe import Corpus, Source, Windows
from tests.corpora import make_corpus, row_of, write_wave
from tests.encoders import small_encoder


def _shard(samples: dict[str, int], *units: np.ndarray, dedup: bool = True) -> bytes:
    """The shard of recordings that are used as a whole."""
    heard = [Heard(Utterance(name, row_of(name), 0, size)) for name, size in samples.items()]
    audio = ShardAudio([], Windows(), heard)
    return shard_bytes(audio, dict(enumerate(units)), dedup=dedup)


def _table(data: bytes) -> pa.Table:
    return pq.read_table(io.BytesIO(data))


def _units(*units: int) -> np.ndarray:
    return np.array(units, np.uint16)


def test_nearest_is_the_argmin_of_the_distance() -> None:
    torch.manual_seed(0)
    feats_ND, centroids_KD = torch.randn(300, 8) + 3, torch.randn(20, 8) + 3
    index_N, distance_N, _ = nearest(feats_ND, centroids_KD)
    expected = torch.cdist(feats_ND, centroids_KD).square().min(1)
    assert torch.equal(index_N, expected.indices)
    torch.testing.assert_close(distance_N, expected.values, atol=1e-3, rtol=1e-3)


def test_nearest_is_exact_where_fp32_is_not() -> None:
    """Frames between two centroids far from the origin: products in fp32 put some to the other."""
    torch.manual_seed(0)
    centroids_KD = torch.randn(50, 256) + 100 * torch.randn(256)
    first_N, second_N = torch.randint(50, (2, 400))
    share_N1 = 0.5 + 1e-6 * torch.randn(400, 1)
    feats_ND = torch.lerp(centroids_KD[first_N], centroids_KD[second_N], share_N1)
    exact = torch.cdist(feats_ND.double(), centroids_KD.double()).argmin(1)
    naive = (centroids_KD.square().sum(1) - 2 * feats_ND @ centroids_KD.T).argmin(1)
    found = nearest(feats_ND, centroids_KD)
    assert (naive != exact).sum() > 20
    assert torch.equal(found.index_N, exact)
    assert found.is_tie_N[first_N != second_N].float().mean() > 0.9


def test_nearest_is_exact_for_short_frames_among_long_centroids() -> None:
    """What fp32 does to the centroids' own norms decides there."""
    torch.manual_seed(0)
    half_KD = torch.randn(2, 768)
    centroids_KD = torch.cat([half_KD, -half_KD * (1 + 1e-7 * torch.randn(2, 768))])
    feats_ND = 1e-6 * torch.randn(2_000, 768)
    exact = torch.cdist(feats_ND.double(), centroids_KD.double()).argmin(1)
    assert torch.equal(nearest(feats_ND, centroids_KD).index_N, exact)


def test_a_frame_that_is_clearly_of_one_unit_is_no_tie() -> None:
    torch.manual_seed(0)
    centroids_KD = torch.randn(50, 64)
    assert not nearest(centroids_KD + 0.01 * torch.randn(50, 64), centroids_KD).is_tie_N.any()


def test_nearest_of_no_frames() -> None:
    index_N, distance_N, _ = nearest(torch.zeros(0, 4), torch.zeros(2, 4))
    assert (len(index_N), len(distance_N)) == (0, 0)


def test_deduplication_keeps_durations() -> None:
    units, durations = deduplicated(_units(7, 7, 7, 0, 65_535, 65_535, 7))
    assert units.tolist() == [7, 0, 65_535, 7]
    assert durations.tolist() == [3, 1, 2, 1]
    assert units.dtype == durations.dtype == np.uint16


def test_deduplication_of_nothing_and_of_too_much() -> None:
    assert [a.tolist() for a in deduplicated(_units())] == [[], []]
    with pytest.raises(OverflowError, match="65536 frames"):
        deduplicated(np.zeros(65_536, np.uint16))


def test_shards_have_equal_bytes_and_the_promised_columns() -> None:
    samples, units = {"a": 960, "empty": 10, "b": 640}, (_units(3, 3, 4), _units(), _units(4, 4))
    data = _shard(samples, *units)
    assert data == _shard(samples, *units)
    table = _table(data)
    assert table.schema.equals(SCHEMA)
    assert table["units"].to_pylist() == [[3, 4], [], [4]]
    assert table["durations"].to_pylist() == [[2, 1], [], [2]]
    assert table["num_samples"].to_pylist() == [960, 10, 640]


def test_a_shard_has_a_row_for_what_is_not_used() -> None:
    names, reasons = ("a", "still", "broken", "b"), ("", "silent", "", "")
    heard = [
        Heard(Utterance(f"{name}@0", row_of(name, number=number), 0, 960), reason)
        for number, (name, reason) in enumerate(zip(names, reasons, strict=True))
    ]
    parts = [Part(row_of(name, number=number), 0, None) for number, name in enumerate(names)]
    audio = ShardAudio(parts, Windows(), heard, {"broken": "damaged"})
    units = {0: _units(1), 1: _units(2), 2: _units(3)}
    rows = _table(shard_bytes(audio, units, dedup=True)).to_pylist()
    about = [(r["id"], r["units"], r["left_out"], r["unreadable"]) for r in rows]
    assert about == [
        ("a@0", [1], None, None),
        ("still@0", [], "silent", None),
        ("broken", [], None, "damaged"),
        ("b@0", [3], None, None),  # the last one, which may go on in the next shard
    ]
    assert ShardStats.of(_table(shard_bytes(audio, units, dedup=True)), 4).num_utterances == 2


def test_recordings_whose_features_are_no_numbers_are_set_aside() -> None:
    names, reasons = ("a", "still", "odd", "b"), ("", "silent", "", "")
    heard = [
        Heard(Utterance(f"{name}@0", row_of(name, number=number), 0, 960), reason)
        for number, (name, reason) in enumerate(zip(names, reasons, strict=True))
    ]
    parts = [Part(row_of(name, number=number), 0, None) for number, name in enumerate(names)]
    whole = ShardAudio(parts, Windows(), heard)
    audio = whole.without([1], "no numbers")
    assert not whole.unreadable, "another layer's features may be numbers"
    units = {0: _units(1), 1: _units(0), 2: _units(3)}
    rows = _table(shard_bytes(audio, units, dedup=True)).to_pylist()
    assert [(r["id"], r["units"], r["unreadable"]) for r in rows] == [
        ("a@0", [1], None),
        ("still@0", [], None),
        ("odd", [], "no numbers"),
        ("b@0", [3], None),
    ]


def _heard(folder: Path, views: dict[str, View], missing: list[int]) -> ShardResult:
    """The one shard of a corpus whose encoder has no numbers after its second layer.

    ``views``: where units go, and of which features.
    """
    write_wave(folder / "speech" / "one.wav", 16_000)
    write_wave(folder / "speech" / "two.wav", 24_000, seed=1)
    roots, source = {"s": Root(folder / "speech")}, Source(name="s", language="en")
    corpus = Corpus(sources=(source,), windows=Windows())
    tables = make_corpus(Storage(str(folder / "corpus")), corpus, roots)
    model = small_encoder("hubert base")
    model.encoder.layers[1].feed_forward.output_dense.weight.data.fill_(3e38)  # overflows
    model.save_pretrained(folder / "encoder")
    centroids_KD = torch.randn(7, 96, generator=torch.Generator().manual_seed(0))
    fit = Fit(centroids=centroids_KD, inertia=1.0, iterations=1, num_frames=100)
    write_codebook(Storage(str(codebook := folder / "codebook")), fit)
    wanted = [
        WantedUnits(view=view, codebook_url=str(codebook), out_url=str(folder / name))
        for name, view in views.items()
    ]
    spec = EncoderSpec.up_to(list(views.values()), str(folder / "encoder"))
    tokenizer = Tokenizer(spec, roots, Windows(), wanted, True)
    return tokenizer(ShardTask(shard=0, rows=tables.shard(0), missing=missing))


def test_features_that_are_no_numbers_in_one_layer_are_no_matter_of_others(tmp_path: Path) -> None:
    """The shard of a lower layer is the same with a higher one beside it, to the byte."""
    alone, both = tmp_path / "alone", tmp_path / "both"
    _heard(alone, {"low": View(1)}, [0])
    result = _heard(both, {"high": View(2), "low": View(1)}, [0, 1])
    low, high = (Storage(str(both / name)).read_bytes(shard_path(0)) for name in ("low", "high"))
    assert low == Storage(str(alone / "low")).read_bytes(shard_path(0))
    assert all(len(units) > 9 for units in _table(low)["units"].to_pylist())
    assert _table(high)["units"].to_pylist() == [[], []]
    assert set(_table(high)["unreadable"].to_pylist()) == {
        "the encoder's features of it hold NaN or infinity"
    }
    fates = {n: [edge.fate for edge in account.edges] for n, account in result.accounts.items()}
    assert fates == {0: [Fate.UNREADABLE] * 2, 1: [Fate.USED] * 2}
    assert [stats.num_utterances for stats in result.stats.values()] == [0, 2]


def test_units_that_are_there_are_not_made_again(tmp_path: Path) -> None:
    result = _heard(tmp_path, {"high": View(2), "low": View(1)}, [1])
    assert result.stats.keys() == result.accounts.keys() == {1}
    assert not (tmp_path / "high").exists()


def test_without_deduplication_every_frame_is_a_token() -> None:
    table = _table(_shard({"a": 960}, _units(3, 3, 4), dedup=False))
    assert table["units"].to_pylist() == [[3, 3, 4]]
    assert table["durations"].to_pylist() == [[1, 1, 1]]


def test_stats_of_several_shards() -> None:
    one = ShardStats.of(_table(_shard({"a": 16_000}, _units(0, 1, 1))), 4)
    two = ShardStats.of(_table(_shard({"b": 8_000}, _units(2, 3))), 4)
    total = one + two
    assert (total.num_utterances, total.audio_s, total.num_tokens) == (2, 1.5, 4)
    assert total.entropy_bits == 2.0


def test_only_absent_shards_are_missing(tmp_path: Path) -> None:
    outs = [Storage(str(tmp_path / name)) for name in ("a", "b")]
    outs[0].create(shard_path(0), b"")
    outs[1].create(shard_path(0), b"")
    outs[1].create(shard_path(2), b"")
    assert missing_shards([0, 1, 2], outs) == {1: (0, 1), 2: (0,)}


def test_a_codebook_survives_and_its_digest_is_checked(tmp_path: Path) -> None:
    out, centroids_KD = Storage(str(tmp_path)), torch.randn(5, 3)
    for _ in range(2):  # the second time as an attempt after one that was killed
        write_codebook(out, Fit(centroids=centroids_KD, inertia=1.5, iterations=2, num_frames=9))
    assert torch.equal(read_codebook(out)["centroids"], centroids_KD)
    assert out.read_json("codebook.json").keys() == {
        "num_clusters",
        "dim",
        "sha256",
        "inertia",
        "iterations",
    }
    data = bytearray(out.read_bytes("codebook.safetensors"))
    data[-1] ^= 1
    out.replace("codebook.safetensors", bytes(data))
    with pytest.raises(CorruptError, match=r"bytes differ from codebook\.json's sha256"):
        read_codebook(out)


def test_other_bytes_under_the_same_key_are_an_error(tmp_path: Path) -> None:
    out = Storage(str(tmp_path))
    create_same(out, "x", b"one")
    create_same(out, "x", b"one")
    with pytest.raises(CorruptError, match="wrote other bytes under the same key"):
        create_same(out, "x", b"two")
