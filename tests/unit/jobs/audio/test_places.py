"""One artifact serves clusters that keep the same audio elsewhere."""

from __future__ import annotations

import shutil
import tarfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from jobs.audio import places
from jobs.audio.corpus_tables import CorpusTables
from jobs.audio.decoders import Decoders
from jobs.audio.roots import Root
from orchestrator.errors import BackendError, DataError
from orchestrator.ledger.storage import Storage
from orchestrator.spec.recipe import Corpus, Source
from tests.corpora import make_corpus, write_wave

CORPUS = Corpus(sources=(Source(name="s"),), snapshot="now")


@pytest.fixture
def out(tmp_path: Path) -> Storage:
    for name in ("a", "b"):
        write_wave(tmp_path / f"here/en/{name}.wav", 9_000)
    out = Storage(str(tmp_path / "out"))
    make_corpus(out, CORPUS, {"s": Root(tmp_path / "here")})
    return out


def test_another_root_gets_a_table_of_its_own(tmp_path: Path, out: Storage) -> None:
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    before = out.list()
    assert places.ensured(out, CORPUS, {"s": Root(tmp_path / "here")}) in min(out.list("places"))
    assert out.list() == before
    folder = places.ensured(out, CORPUS, {"s": Root(tmp_path / "there")})
    assert set(out.list()) - set(before) == {f"{folder}/000000.parquet"}
    assert [row.id for row in CorpusTables(out, folder).rows(0, 2)] == ["s/en/a", "s/en/b"]


def test_the_same_tar_needs_no_other_corpus(tmp_path: Path, out: Storage) -> None:
    (tmp_path / "tars").mkdir()
    shutil.make_archive(str(tmp_path / "tars/all"), "tar", tmp_path / "here")
    folder = places.ensured(out, CORPUS, {"s": Root(tmp_path / "tars", "tar")})
    (first, _) = CorpusTables(out, folder).rows(0, 2)
    assert (first.id, first.leaf.archive) == ("s/en/a", "all.tar")


def _packed(folder: Path, order: str) -> None:
    with tarfile.open(folder / "all.tar", "w") as tar:
        for name in order:
            tar.add(folder.parent / f"here/en/{name}.wav", f"en/{name}.wav")


def test_a_tar_that_is_packed_anew_is_looked_at_anew(tmp_path: Path) -> None:
    waves = {n: write_wave(tmp_path / f"here/en/{n}.wav", 9_000, seed=ord(n)) for n in "ab"}
    (tmp_path / "tars").mkdir()
    out, roots = Storage(str(tmp_path / "out")), {"s": Root(tmp_path / "tars", "tar")}
    _packed(tmp_path / "tars", "ab")
    make_corpus(out, CORPUS, roots)
    before = places.folder_of(roots)
    _packed(tmp_path / "tars", "ba")
    folder = places.ensured(out, CORPUS, roots)
    assert folder != before
    with closing(Decoders(1)) as decoders:
        for row, name in zip(CorpusTables(out, folder).rows(0, 2), "ab", strict=True):
            (block,) = roots["s"].blocks(decoders, row.leaf)
            np.testing.assert_array_equal(block, waves[name])


def test_a_parquet_file_that_is_written_anew_is_looked_at_anew(tmp_path: Path) -> None:
    root = {"s": Root(tmp_path, "parquet")}
    found = set()
    for content in (b"one", b"two"):
        (tmp_path / "a.parquet").write_bytes(content)
        found.add(places.folder_of(root))
    assert len(found) == 2
    shutil.rmtree(tmp_path)
    with pytest.raises(BackendError, match=r"data\.s: .*No such file"):
        places.folder_of(root)


@pytest.mark.parametrize("change", ["more", "less"])
def test_other_recordings_are_another_snapshot(tmp_path: Path, out: Storage, change: str) -> None:
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    if change == "more":
        write_wave(tmp_path / "there/en/b2.wav", 9_000)
    else:
        (tmp_path / "there/en/b.wav").unlink()
    with pytest.raises(DataError, match=r"s/en/b2? is not both here and in the corpus"):
        places.ensured(out, CORPUS, {"s": Root(tmp_path / "there")})


def test_a_root_that_is_not_mounted_is_no_other_snapshot(tmp_path: Path, out: Storage) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(BackendError, match=r"data\.s: .*there: holds nothing"):
        places.ensured(out, CORPUS, {"s": Root(tmp_path / "there")})
