"""What tells a state of a source's data from another, without a label: names, sizes and lists.

In: a source, where it lies and in what. Out: a digest, which stands in the corpus' key. Recordings
count by name and size; what says which there are, when there is speech in them and in which
language, by its bytes: an edit may keep its size, and a copy gets another time. In tars it counts
with them, by name and size.
"""

from __future__ import annotations

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path

from orchestrator.errors import RequestError
from orchestrator.ledger.bucket_path import BucketPath
from orchestrator.ledger.source_files import SourceFile, as_path, files_below
from orchestrator.spec.cluster import Container
from orchestrator.spec.recipe import Source

MAX_FILES = 100_000
"""Names and sizes of more take minutes on a shared file system."""
MAX_LIST_BYTES = 4 << 30
LISTS = {
    "fairseq_tsv": re.compile(r"[^/]*\.tsv"),
    "kaldi": re.compile(r"wav\.scp|segments|utt2spk|utt2lang"),
    "manifest": re.compile(r"manifest\.((csv|jsonl|json)(\.gz)?|parquet)"),
    "lhotse": re.compile(r"(.*/)?(cuts|recordings)[^/]*\.jsonl(\.gz)?"),
    "gigaspeech": re.compile(r"(.*/)?GigaSpeech\.json"),
    "voxpopuli": re.compile(r"(.*/)?(unlabelled_v2|asr_[^/]*)\.tsv(\.gz)?"),
    "spotify": re.compile(r"(.*/)?metadata\.tsv(\.gz)?"),
    "peoples_speech": re.compile(r"(.*/)?lang_id_results\.jsonl"),
    "libri_light": re.compile(r".*\.json"),
    "webdataset": re.compile(r".*\.json"),
}
"""Adapter to the paths of the files that say which recordings there are, or what they are."""
ALIGNMENTS = re.compile(r".*\.(textgrid|phn|ctm|lab)", re.IGNORECASE)
"""Files of phone times."""
BESIDE_RECORDINGS = re.compile(r".*\.(csv|tsv|txt|jsonl?|yaml)", re.IGNORECASE)
"""What says which recordings of a suite are a pair."""
MAX_SUITE_FILES = 1_000_000
"""The sWUGGY of 2021 has more than 200,000."""
WITHOUT_LISTS = ("peoples_speech", "webdataset")
"""Those of them that find recordings where there are no lists, as in rows of Parquet."""
_READERS = 8
"""Lists that are read at once: they may be tens of thousands of small files."""


def fingerprint(
    source: Source, root: Path | BucketPath, container: Container, *, max_files: int = MAX_FILES
) -> str:
    """SHA-256 of the names and sizes of a source's files, and of the bytes of its lists.

    What lies in other containers than folders is told apart: of the same files, other recordings
    are found.

    Raises RequestError where that would take long, OSError when a part cannot be listed or read.
    """
    label = "give corpus.snapshot, a label for the state of the data, in place of names and sizes"
    files = _files(root, max_files, label)
    if container == "parquet":
        files = [file for file in files if file.path.lower().endswith(".parquet")]
    files.sort(key=lambda file: Path(file.path))
    digest = hashlib.sha256(b"" if container == "folder" else f"{container}\0".encode())
    for path, size, problem in files:
        digest.update(f"{path}\0{problem or size}\n".encode())
    pattern = LISTS.get(source.adapter)
    _add_bytes(digest, root, _matching(root, files, pattern) if pattern else [])
    return digest.hexdigest()


def fingerprint_alignments(root: Path | BucketPath, container: Container) -> str:
    """SHA-256 of the bytes of files of phone times; of names and sizes where they are in tars.

    Raises what `fingerprint` does.
    """
    files = _files(root, MAX_FILES, "put phone times into one .ctm for each part of the corpus")
    files.sort(key=lambda file: Path(file.path))
    digest = hashlib.sha256()
    if container == "folder":
        _add_bytes(digest, root, _matching(root, files, ALIGNMENTS))
    else:
        for path, size, problem in files:
            digest.update(f"{path}\0{problem or size}\n".encode())
    return digest.hexdigest()


def fingerprint_suite(root: Path | BucketPath, container: Container) -> str:
    """SHA-256 of the names and sizes of a suite's recordings, and of the bytes of all else.

    Raises RequestError for what is no folder of files, and what `fingerprint` does.
    """
    if isinstance(root, BucketPath) or container != "folder":
        what = "a bucket" if isinstance(root, BucketPath) else f"in container {container}"
        raise RequestError(f"{root} is {what}; unpack the suite into a folder that all nodes see")
    files = _files(root, MAX_SUITE_FILES, "name the folder of the suite alone")
    files.sort(key=lambda file: Path(file.path))
    digest = hashlib.sha256()
    for path, size, problem in files:
        digest.update(f"{path}\0{problem or size}\n".encode())
    _add_bytes(digest, root, _matching(root, files, BESIDE_RECORDINGS))
    return digest.hexdigest()


def _files(root: Path | BucketPath, max_files: int, remedy: str) -> list[SourceFile]:
    files = list(islice(files_below(root), max_files + 1))
    if len(files) > max_files:
        raise RequestError(f"{root} has more than {max_files:,} files; {remedy}")
    return files


def _add_bytes(digest: hashlib._Hash, root: Path | BucketPath, files: list[SourceFile]) -> None:
    with ThreadPoolExecutor(_READERS) as threads:
        for file, of_file in zip(files, threads.map(partial(_digest, root), files), strict=True):
            digest.update(f"{file.path}\0{of_file}\n".encode())


def _digest(root: Path | BucketPath, file: SourceFile) -> str:
    with (root / as_path(file.path)).open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _matching(
    root: Path | BucketPath, files: list[SourceFile], pattern: re.Pattern[str]
) -> list[SourceFile]:
    """The files whose bytes count."""
    found = [f for f in files if not f.problem and pattern.fullmatch(f.path)]
    if sum(file.size for file in found) > MAX_LIST_BYTES:
        raise RequestError(
            f"{root} has lists of more than {MAX_LIST_BYTES >> 30} GiB; give corpus.snapshot, a "
            "label for the state of the data, in place of what they say"
        )
    return found
