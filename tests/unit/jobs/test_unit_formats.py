"""Each format is read back as its readers read it."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split

from jobs.unit_formats import FORMATS, UtteranceUnits
from orchestrator.control import export
from orchestrator.errors import RequestError

NUM_UNITS = 70_000 // 2
UTTERANCES = [
    UtteranceUnits(
        id=f"speaker {n}/книга.flac-{n}",
        recording=f"speaker {n}/книга.flac",
        units_L=np.asarray(units, np.uint16),
        durations_L=np.asarray(durations, np.uint16),
        num_samples=320 * sum(durations) + 80,
    )
    for n, (units, durations) in enumerate(
        [([5, 17, 5], [1, 2, 1]), ([0], [9]), (list(range(300)), [1] * 300), ([34_999], [1])]
    )
]


@pytest.fixture(params=[0, len(UTTERANCES)])
def num_rows(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def written(folder: Path, form: str, num_rows: int) -> Path:
    files = FORMATS[form](folder, "train", NUM_UNITS)
    for utterance in UTTERANCES[:num_rows]:
        files.add(utterance)
    files.close()
    return folder


def units(num_rows: int) -> list[list[int]]:
    return [u.units_L.tolist() for u in UTTERANCES[:num_rows]]


def test_the_command_line_offers_each() -> None:
    assert list(export.FORMATS) == list(FORMATS)


def test_parquet(tmp_path: Path, num_rows: int) -> None:
    rows = pq.read_table(written(tmp_path, "parquet", num_rows) / "train.parquet").to_pylist()
    assert [row["units"] for row in rows] == units(num_rows)
    assert [sum(row["durations"]) * 320 + 80 for row in rows] == [r["num_samples"] for r in rows]
    assert [row["id"] for row in rows] == [u.id for u in UTTERANCES[:num_rows]]


def test_parquet_of_more_rows_than_a_group(tmp_path: Path) -> None:
    files = FORMATS["parquet"](tmp_path, "train", NUM_UNITS)
    for _ in range(10_000):
        files.add(UTTERANCES[0])
    files.close()
    file = pq.ParquetFile(tmp_path / "train.parquet")
    assert (file.metadata.num_rows, file.num_row_groups) == (10_000, 2)


def test_slamkit(tmp_path: Path, num_rows: int) -> None:
    """Its tokenizer splits at each ``>`` and looks the words up."""
    words = Tokenizer(WordLevel({f"<Un{n}>": n for n in range(NUM_UNITS)}, unk_token="<UNK>"))
    words.pre_tokenizer = Split(pattern=">", behavior="merged_with_previous")
    lines = (written(tmp_path, "slamkit", num_rows) / "train.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [words.encode(row["audio_repr"]).ids for row in rows] == units(num_rows)
    assert [row["units"] for row in rows] == units(num_rows)
    assert all(len(row["duration"]) == len(row["units"]) for row in rows)


def test_fairseq(tmp_path: Path, num_rows: int) -> None:
    """A label a frame; a line each in both files, the manifest's after its root."""
    folder = written(tmp_path, "fairseq", num_rows)
    _root, *manifest = (folder / "train.tsv").read_text().splitlines()
    labels = (folder / "train.km").read_text().splitlines()
    words = [line.rsplit(" ", 1)[0] for line in (folder / "dict.km.txt").read_text().splitlines()]
    assert words == [str(n) for n in range(NUM_UNITS)]
    assert len(manifest) == len(labels) == num_rows
    for line, label, utterance in zip(manifest, labels, UTTERANCES, strict=False):
        name, num_samples = line.split("\t")
        assert (name, int(num_samples)) == (utterance.id, utterance.num_samples)
        frames = [words.index(word) for word in label.split()]
        assert frames == np.repeat(utterance.units_L, utterance.durations_L).tolist()


def test_npy(tmp_path: Path, num_rows: int) -> None:
    folder = written(tmp_path, "npy", num_rows)
    flat = np.load(folder / "train.npy", mmap_mode="r" if num_rows else None)
    offsets = np.load(folder / "train.offsets.npy", mmap_mode="r")
    assert (flat.dtype, offsets.dtype) == (np.uint16, np.int64)
    found = [flat[a:b].tolist() for a, b in itertools.pairwise(offsets)]
    assert found == units(num_rows)
    ids = (folder / "train.ids.txt").read_text().splitlines()
    assert ids == [u.id for u in UTTERANCES[:num_rows]]


@pytest.mark.parametrize("form", ["fairseq", "npy"])
@pytest.mark.parametrize("name", ["a\tb", "a\nb", "a\u2028b", "a\n"])
def test_a_name_that_would_break_the_lines_is_refused(tmp_path: Path, form: str, name: str) -> None:
    files = FORMATS[form](tmp_path, "train", NUM_UNITS)
    with pytest.raises(RequestError, match="export as parquet"):
        files.add(replace(UTTERANCES[0], id=name))
    files.close()
