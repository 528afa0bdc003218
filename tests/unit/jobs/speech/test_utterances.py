"""Rows of the corpus, pages of them, and their waves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from jobs.audio.decode import UnreadableAudioError
from jobs.speech.utterances import CorpusRows, Root, Utterance, WaveReader, batches, pages


def _utterance(start_sample: int, num_samples: int, path: str = "a.wav") -> Utterance:
    name = f"{path}@{start_sample}"
    return Utterance(name, "s", path, start_sample, num_samples, recording=path)


def _write(folder: Path, name: str, num_samples: int) -> np.ndarray:
    wave = np.random.default_rng(num_samples).normal(0, 0.1, num_samples).astype(np.float32)
    soundfile.write(folder / name, wave, 16_000, subtype="FLOAT")
    return wave


def test_a_shard_is_its_rows_in_order() -> None:
    listed = [_utterance(n, 10) for n in range(5)]
    manifest = pa.Table.from_pylist([vars(u) for u in listed])
    shards = pa.table({"shard": [1, 0, 1, 2, 1], "row": [4, 1, 0, 2, 3]})
    rows = CorpusRows(manifest, shards)
    assert rows.shards == [0, 1, 2]
    assert [u.start_sample for u in rows.of_shard(1)] == [0, 3, 4]
    assert rows.of_shard(2) == [listed[2]]


def test_a_recording_has_the_samples_of_its_utterances() -> None:
    listed = [_utterance(0, 10), _utterance(10, 11), _utterance(0, 5, path="b.wav")]
    rows = CorpusRows(
        pa.Table.from_pylist([vars(u) for u in listed]),
        pa.table({"shard": [0, 0, 1], "row": [0, 1, 2]}),
    )
    assert rows.samples_by_recording() == {"a.wav": 21, "b.wav": 5}


def _sample(hours: float, seed: int) -> list[int]:
    """Numbers of the utterances drawn from 200 that last a minute each."""
    listed = [_utterance(n, 60 * 16_000) for n in range(200)]
    rows = CorpusRows(
        pa.Table.from_pylist([vars(u) for u in listed]),
        pa.table({"shard": [0] * 200, "row": list(range(200))}),
    )
    return [u.start_sample for u in rows.sample(hours, seed)]


def test_the_sample_has_the_hours_asked_for_in_manifest_order() -> None:
    drawn = _sample(0.5, seed=0)
    assert len(drawn) == 30
    assert drawn == sorted(drawn)
    assert drawn != list(range(30))
    assert len(_sample(0.501, seed=0)) == 31, "the last one may end beyond them"


def test_the_sample_grows_and_depends_on_the_seed() -> None:
    small = set(_sample(0.5, seed=0))
    assert small < set(_sample(1.0, seed=0))
    assert small != set(_sample(0.5, seed=1))
    assert _sample(99, seed=0) == list(range(200))


def test_pages_are_runs_within_the_limit() -> None:
    sizes = [3, 4, 9, 1, 1]
    cut = pages([_utterance(n, size) for n, size in enumerate(sizes)], max_samples=8)
    assert [[u.num_samples for u in page] for page in cut] == [[3, 4], [9], [1, 1]]
    assert list(pages([])) == []


def test_batches_give_every_utterance_its_own_samples(tmp_path: Path) -> None:
    waves = {name: _write(tmp_path, name, n) for name, n in (("a.wav", 9_000), ("b.wav", 4_000))}
    utterances = [_utterance(0, 4_500), _utterance(4_500, 4_500), _utterance(0, 4_000, "b.wav")]
    seen = {}
    for positions, batch in batches(utterances, WaveReader({"s": Root(tmp_path)})):
        seen.update(zip(positions, batch, strict=True))
    np.testing.assert_array_equal(seen[0], waves["a.wav"][:4_500])
    np.testing.assert_array_equal(seen[1], waves["a.wav"][4_500:])
    np.testing.assert_array_equal(seen[2], waves["b.wav"])


def test_neighbours_of_one_recording_are_decoded_once(tmp_path: Path) -> None:
    _write(tmp_path, "a.wav", 2_000)
    reader = WaveReader({"s": Root(tmp_path)})
    reader.read(_utterance(0, 1_000))
    (tmp_path / "a.wav").unlink()
    assert len(reader.read(_utterance(1_000, 1_000))) == 1_000


def test_the_band_limit_of_the_source_applies(tmp_path: Path) -> None:
    wave = _write(tmp_path, "a.wav", 8_000)
    filtered = WaveReader({"s": Root(tmp_path, lowpass_hz=1_000)}).read(_utterance(0, 8_000))
    assert filtered.std() < 0.5 * wave.std()


def test_a_recording_that_shrank_is_named(tmp_path: Path) -> None:
    _write(tmp_path, "a.wav", 1_000)
    with pytest.raises(
        UnreadableAudioError, match=r"a\.wav: ends before sample 1500, which the corpus"
    ):
        WaveReader({"s": Root(tmp_path)}).read(_utterance(500, 1_000))
