"""A source whose mount goes away is a fault of the storage, and of no recording."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from jobs.audio.corpus_tables import CorpusTables
from jobs.audio.listing import list_corpus
from jobs.audio.roots import Root, RootWatch
from jobs.speech.units import shard_bytes
from jobs.speech.utterances import ShardAudio, WaveReader
from orchestrator.errors import BackendError, Cause
from orchestrator.ledger.storage import Storage
from orchestrator.spec.recipe import Corpus, Source, Windows
from tests.corpora import lengths_of, make_corpus, write_wave

pytestmark = pytest.mark.slow
NUM_RECORDINGS, WINDOWS = 4, Windows(max_s=20.0)


@dataclass
class Disk:
    """A tmpfs with the recordings, which can be taken away and brought back; needs root."""

    folder: Path
    copy: Path

    def mount(self) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "none", self.folder], check=True)
        shutil.copytree(self.copy, self.folder, dirs_exist_ok=True)

    def take_away(self) -> None:
        subprocess.run(["umount", "--lazy", self.folder], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    for number in range(NUM_RECORDINGS):
        write_wave(tmp_path / f"copy/en/{number}.flac", 65 * 16_000, seed=number)
    (tmp_path / "disk").mkdir()
    disk = Disk(tmp_path / "disk", tmp_path / "copy")
    disk.mount()
    yield disk
    subprocess.run(["umount", "--lazy", disk.folder], check=False, stderr=subprocess.DEVNULL)


@pytest.fixture
def roots(disk: Disk) -> dict[str, Root]:
    return {"s": Root(disk.folder)}


def corpus() -> Corpus:
    return Corpus(sources=(Source(name="s"),), windows=WINDOWS, shard_hours=1)


def shard_of(tables: CorpusTables, roots: dict[str, Root], disk: Disk | None = None) -> bytes:
    """The shard, with a unit for each second; the disk goes away after its second wave."""
    audio = ShardAudio(tables.shard(0).parts(), WINDOWS)
    units = {}
    for number, wav_S in enumerate(audio.waves(WaveReader(roots))):
        units[number] = np.round(np.abs(wav_S[::16_000]) * 1000).astype(np.uint16)
        if disk and number == 1:
            disk.take_away()
    return shard_bytes(audio, units, dedup=False)


def test_while_it_is_decoded(tmp_path: Path, disk: Disk, roots: dict[str, Root]) -> None:
    tables = make_corpus(Storage(str(tmp_path / "out")), corpus(), roots)
    undisturbed = shard_of(tables, roots)
    with pytest.raises(BackendError, match=str(disk.folder)) as error:
        shard_of(tables, roots, disk)
    assert error.value.cause is Cause.STORAGE
    disk.mount()
    assert shard_of(tables, roots) == undisturbed


def test_while_headers_are_read(disk: Disk, roots: dict[str, Root]) -> None:
    listing = list_corpus(corpus(), roots)
    before = lengths_of(listing, roots)
    disk.take_away()
    with pytest.raises(BackendError, match=str(disk.folder)):
        lengths_of(listing, roots)
    disk.mount()
    assert lengths_of(listing, roots).tolist() == before.tolist()


def test_while_it_is_listed(disk: Disk, roots: dict[str, Root]) -> None:
    watch = RootWatch("s", roots["s"].path)
    disk.take_away()
    with pytest.raises(BackendError, match=r"data\.s: .*holds nothing; see that it is mounted"):
        list_corpus(corpus(), roots)
    with pytest.raises(BackendError, match=r"data\.s: .*another file system than at the start"):
        watch.require()
