"""Which recordings a corpus has, by its sources, languages and ids."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from jobs.audio.corpus_tables import Expected
from jobs.audio.listing import list_corpus
from jobs.audio.roots import Root
from orchestrator.errors import BackendError, Cause, DataError
from orchestrator.spec.cluster import Container
from orchestrator.spec.recipe import Adapter, Corpus, Source


def listed(root: Path, languages: tuple[str, ...] = ("en",), **source: Any) -> dict[str, list[str]]:
    """The ids of each table."""
    corpus = Corpus(sources=(Source(name="s", **source),), languages=languages)
    found = list_corpus(corpus, {"s": Root(root)})
    return {name: table["id"].to_pylist() for name, table in found._asdict().items()}


def touch(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).touch()


def test_a_language_that_is_not_wanted_is_listed(tmp_path: Path) -> None:
    touch(tmp_path, "en/1/a.wav", "es/2/b.FLAC", "c.mp3", "en/notes.txt")
    assert listed(tmp_path) == {
        "wanted": ["s/en/1/a"],
        "left_out": ["s/c", "s/es/2/b"],
        "quarantine": [],
    }


def test_a_source_may_say_its_language(tmp_path: Path) -> None:
    touch(tmp_path, "x/b.wav", "a.wav")
    assert listed(tmp_path, ("fr",), language="fr")["wanted"] == ["s/a", "s/x/b"]


def test_what_the_adapter_says_is_kept(tmp_path: Path) -> None:
    touch(tmp_path, "dev/84/121/84-121-0000.flac")
    corpus = Corpus(sources=(Source(name="ls", adapter="librispeech"),))
    (row,) = list_corpus(corpus, {"ls": Root(tmp_path)}).wanted.to_pylist()
    assert (row["id"], row["speaker"]) == ("ls/dev/84/121/84-121-0000", "84")


def test_sources_are_in_the_recipes_order_and_ids_in_theirs(tmp_path: Path) -> None:
    touch(tmp_path, "z/en/b.wav", "z/en/a.wav", "a/en/c.wav")
    corpus = Corpus(sources=(Source(name="z"), Source(name="a")))
    roots = {name: Root(tmp_path / name) for name in "za"}
    found = list_corpus(corpus, roots).wanted["id"].to_pylist()
    assert found == ["z/en/a", "z/en/b", "a/en/c"]


def test_files_that_differ_in_their_suffix_alone_are_two_recordings(tmp_path: Path) -> None:
    touch(tmp_path, "en/a.wav", "en/a.flac", "en/b.wav")
    assert listed(tmp_path)["wanted"] == ["s/en/a.flac", "s/en/a.wav", "s/en/b"]


def test_what_cannot_be_opened_is_told_apart(tmp_path: Path) -> None:
    touch(tmp_path, "en/a.wav")
    (tmp_path / "en/dead.wav").symlink_to("nowhere")
    os.mkfifo(tmp_path / "en/pipe.wav")
    assert listed(tmp_path)["quarantine"] == ["s/en/dead", "s/en/pipe"]


def test_a_root_that_is_not_there_is_the_stores_fault(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"data\.s: .*nowhere"):
        listed(tmp_path / "nowhere")


@pytest.mark.parametrize("container", get_args(Container))
def test_a_root_that_is_not_mounted_makes_no_smaller_corpus(
    tmp_path: Path, container: Container
) -> None:
    """An attempt may begin after the mount went, or on a node that has none."""
    touch(tmp_path / "a", "en/a.wav")
    (tmp_path / "b").mkdir()
    corpus = Corpus(sources=(Source(name="a"), Source(name="b")))
    with pytest.raises(
        BackendError, match=r"data\.b: .*b: holds nothing; see that it is mounted$"
    ) as error:
        list_corpus(corpus, {"a": Root(tmp_path / "a"), "b": Root(tmp_path / "b", container)})
    assert error.value.cause is Cause.STORAGE


def test_one_id_for_two_recordings_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "en/a.wav", "en/b.wav")
    lines = ['{"path": "en/a.wav", "id": "x"}', '{"path": "en/b.wav", "id": "x"}']
    (tmp_path / "manifest.jsonl").write_text("\n".join(lines))
    with pytest.raises(
        DataError, match=r"data\.s: 1 recordings .*: en/a\.wav and en/b\.wav are both 'x'"
    ):
        listed(tmp_path, adapter="manifest", language="en")


@pytest.mark.parametrize(("offset", "duration"), [("NaN", 1), (2, "NaN"), (-1, 1), ("Infinity", 1)])
def test_times_that_are_none_are_named(tmp_path: Path, offset: Any, duration: Any) -> None:
    touch(tmp_path, "en/a.wav")
    row = f'{{"path": "en/a.wav", "id": "x", "offset": {offset}, "duration": {duration}}}'
    (tmp_path / "manifest.jsonl").write_text(row)
    with pytest.raises(DataError, match=r"data\.s: .*(no stretch|are no stretch|no time in)"):
        listed(tmp_path, adapter="manifest", language="en")


def test_a_segment_may_end_with_its_file(tmp_path: Path) -> None:
    touch(tmp_path, "a.wav")
    (tmp_path / "wav.scp").write_text("r a.wav\n")
    (tmp_path / "segments").write_text("u r 2.0 -1\n")
    corpus = Corpus(sources=(Source(name="s", adapter="kaldi", language="en"),))
    wanted = list_corpus(corpus, {"s": Root(tmp_path)}).wanted
    expected = Expected.of(wanted["spans_s"], np.array([48_000]), corpus.windows)
    assert (expected.samples.tolist(), expected.num_windows.tolist()) == ([16_000], [1])


@pytest.mark.parametrize("wanted", ["en", "eng"])
def test_a_language_is_the_same_however_it_is_written(tmp_path: Path, wanted: str) -> None:
    touch(tmp_path, "eng/a.wav", "EN_us/b.wav", "English/c.wav", "deu/d.wav", "en.old/e.wav")
    found = listed(tmp_path, (wanted,))
    assert found["wanted"] == ["s/EN_us/b", "s/English/c", "s/eng/a"]
    assert listed(tmp_path, (wanted,), language="eng")["left_out"] == []


def test_each_recording_keeps_its_language_where_several_are_wanted(tmp_path: Path) -> None:
    touch(tmp_path, "eng/a.wav", "de-AT/b.wav", "fr/c.wav")
    corpus = Corpus(sources=(Source(name="s"),), languages=("de", "eng"))
    found = list_corpus(corpus, {"s": Root(tmp_path)})
    rows = [(row["id"], row["language"]) for row in found.wanted.to_pylist()]
    assert rows == [("s/de-AT/b", "de"), ("s/eng/a", "en")]
    assert found.left_out["language"].to_pylist() == ["fr"]


@pytest.mark.parametrize(
    ("adapter", "name", "content"),
    [
        ("manifest", "manifest.csv", "path\nx/a.wav\nx/b.wav\n"),
        ("fairseq_tsv", "train.tsv", "/elsewhere/x\nx/a.wav\t1\n"),
        ("kaldi", "wav.scp", "r x/a.wav\n"),
    ],
)
def test_a_list_of_another_root_is_told_at_once(
    tmp_path: Path, adapter: str, name: str, content: str
) -> None:
    """Before any of its files is called unreadable."""
    touch(tmp_path, "a.wav", "b.wav")
    (tmp_path / name).write_text(content)
    with pytest.raises(
        DataError, match=r"data\.s: none of .* is below .*\(x/a\.wav is the first\)"
    ):
        listed(tmp_path, adapter=adapter, language="en")


@pytest.mark.parametrize("adapter", sorted(set(get_args(Adapter)) - {"hf_parquet"}))
@pytest.mark.parametrize(
    ("container", "suffix"), [("folder", "tar"), ("folder", "parquet"), ("tar", "parquet")]
)
def test_recordings_in_another_container_are_told_of(
    tmp_path: Path, adapter: str, container: Container, suffix: str
) -> None:
    (tmp_path / "audio").mkdir()
    if suffix == "tar":
        with tarfile.open(tmp_path / "audio/000000.tar", "w") as tar:
            info = tarfile.TarInfo("en/a.wav")
            tar.addfile(info)
    else:
        touch(tmp_path, "audio/a.parquet")
    corpus = Corpus(sources=(Source(name="s", adapter=adapter),))
    with pytest.raises(DataError) as error:
        list_corpus(corpus, {"s": Root(tmp_path, container)})
    assert str(error.value).startswith("data.s: ")
    assert str(error.value).endswith(
        f"{tmp_path} has its recordings in container {suffix}, not {container}: say so in the "
        "cluster's data"
    )


@pytest.mark.parametrize("name", ["en/a.wav", "en/a.tar"])
def test_what_is_no_parquet_is_told_of(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name)
    corpus = Corpus(sources=(Source(name="s", adapter="hf_parquet"),))
    with pytest.raises(DataError, match=r"no recording is found; .* not parquet: say so in"):
        list_corpus(corpus, {"s": Root(tmp_path, "parquet")})


def test_recordings_beside_tars_and_folders_without_any_are_as_they_are(tmp_path: Path) -> None:
    touch(tmp_path, "en/a.wav", "b/notes.txt")
    corpus = Corpus(sources=(Source(name="s"),))
    assert list_corpus(corpus, {"s": Root(tmp_path, "tar")}).wanted.num_rows == 1
    assert list_corpus(corpus, {"s": Root(tmp_path / "b", "tar")}).wanted.num_rows == 0
