"""What tells a state of a source's data from another."""

from __future__ import annotations

import os
from pathlib import Path
from typing import get_args

import pytest

from orchestrator.control.fingerprint import (
    fingerprint,
    fingerprint_alignments,
    fingerprint_suite,
)
from orchestrator.errors import RequestError
from orchestrator.ledger.bucket_path import BucketPath
from orchestrator.spec.cluster import Container
from orchestrator.spec.recipe import Source


def of(root: Path, adapter: str = "folder", container: Container = "folder") -> str:
    return fingerprint(Source.model_construct(name="s", adapter=adapter), root, container)


def write(root: Path, **files: bytes) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (root / name.replace("_", ".")).write_bytes(data)
    return root


def test_it_depends_on_names_and_sizes_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / name / "x", **{"1_wav": b"12"})
        write(tmp_path / name, **{"2_wav": b"1"})
    os.utime(tmp_path / "b" / "2.wav", (0, 0))
    write(tmp_path / "b", **{"2_wav": b"2"})
    assert of(tmp_path / "a") == of(tmp_path / "b")
    write(tmp_path / "b", **{"2_wav": b"12"})
    assert of(tmp_path / "a") != of(tmp_path / "b")


@pytest.mark.parametrize("name", ["dead.wav", "itself.wav", "caf\udce9.wav"])
def test_what_is_left_out_later_is_listed_too(tmp_path: Path, name: str) -> None:
    write(tmp_path, a_wav=b"1")
    before = of(tmp_path)
    path = tmp_path / name
    if name == "dead.wav":
        path.symlink_to(tmp_path / "gone")
    elif name == "itself.wav":
        path.symlink_to(path)
    else:
        path.touch()
    assert of(tmp_path) != before


@pytest.mark.parametrize(
    ("adapter", "name"),
    [
        ("manifest", "manifest.csv"),
        ("manifest", "manifest.parquet"),
        ("fairseq_tsv", "train.tsv"),
        ("kaldi", "wav.scp"),
        ("kaldi", "segments"),
        ("lhotse", "cuts.jsonl.gz"),
        ("lhotse", "shar/cuts.000000.jsonl.gz"),
        ("gigaspeech", "GigaSpeech.json"),
        ("spotify", "metadata.tsv"),
        ("spotify", "metadata.tsv.gz"),
        ("manifest", "manifest.jsonl.gz"),
        ("peoples_speech", "lang_id_results.jsonl"),
        ("libri_light", "small/1/book/one_64kb.json"),
        ("webdataset", "EN/EN_B00000_S00000.json"),
    ],
)
def test_a_list_counts_by_its_bytes(tmp_path: Path, adapter: str, name: str) -> None:
    """One that is edited to the same size names other recordings."""
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    write(tmp_path, a_wav=b"1")
    (tmp_path / name).write_bytes(b"a.wav 1")
    before, as_folder = of(tmp_path, adapter), of(tmp_path)
    (tmp_path / name).write_bytes(b"a.wav 2")
    assert of(tmp_path, adapter) != before
    assert of(tmp_path) == as_folder
    write(tmp_path, a_wav=b"2")
    assert of(tmp_path) == as_folder


def test_of_parquet_only_its_files_count(tmp_path: Path) -> None:
    write(tmp_path, a_parquet=b"1")
    before = of(tmp_path, container="parquet")
    write(tmp_path, README_md=b"words")
    assert of(tmp_path, container="parquet") == before
    write(tmp_path, a_parquet=b"12")
    assert of(tmp_path, container="parquet") != before


def test_recordings_of_a_suite_count_by_size_and_all_else_by_its_bytes(tmp_path: Path) -> None:
    write(tmp_path, a_wav=b"1", gold_csv=b"a,1")
    before = fingerprint_suite(tmp_path, "folder")
    write(tmp_path, a_wav=b"2")
    assert fingerprint_suite(tmp_path, "folder") == before
    write(tmp_path, gold_csv=b"a,0")
    edited = fingerprint_suite(tmp_path, "folder")
    write(tmp_path, a_wav=b"22")
    assert len({before, edited, fingerprint_suite(tmp_path, "folder")}) == 3


def test_a_suite_lies_in_a_folder(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="is in container tar; unpack the suite into a folder"):
        fingerprint_suite(tmp_path, "tar")
    with pytest.raises(RequestError, match="is a bucket; unpack the suite into a folder"):
        fingerprint_suite(BucketPath("s3://bucket/suite"), "folder")


def test_of_very_many_files_a_label_is_asked_for(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path, **{f"{number}_wav": b"1"})
    source = Source(name="s")
    fingerprint(source, tmp_path, "folder", max_files=4)
    with pytest.raises(RequestError, match=r"has more than 3 files; give corpus\.snapshot"):
        fingerprint(source, tmp_path, "folder", max_files=3)


def test_the_same_files_read_as_folders_tars_and_parquet_are_three_states(tmp_path: Path) -> None:
    """Other recordings are found in each; the first run's must not be taken for the others'."""
    root = write(tmp_path / "all", a_wav=b"1", b_tar=b"12", c_parquet=b"123")
    rows = write(tmp_path / "rows", c_parquet=b"123")
    states = [of(root, container=container) for container in get_args(Container)]
    assert len({*states, of(rows)}) == len(states) + 1
    assert of(rows, container="parquet") == of(root, container="parquet")


def test_phone_times_count_by_their_bytes(tmp_path: Path) -> None:
    phones = tmp_path / "a" / "x.TextGrid"
    phones.parent.mkdir()
    phones.write_text("one")
    before = fingerprint_alignments(tmp_path, "folder")
    (tmp_path / "a" / "x.wav").write_bytes(b"RIFF")
    assert fingerprint_alignments(tmp_path, "folder") == before
    phones.write_text("two")
    assert fingerprint_alignments(tmp_path, "folder") != before
