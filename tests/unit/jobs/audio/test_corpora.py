from __future__ import annotations

from pathlib import Path

import pytest

from jobs.audio.corpora import list_recordings
from orchestrator.errors import BackendError, Cause, DataError
from orchestrator.spec.recipe import Source


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()


def test_a_folder_names_language_and_speaker(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "es/ana/b.wav",
        "en/bob/a.WAV",
        "en/bob/notes.txt",
        "en/bob/.hidden.wav",
        "top.flac",
    )
    found = list_recordings(Source(name="mine"), tmp_path)
    assert [(r.path, r.language, r.speaker) for r in found] == [
        ("en/bob/a.WAV", "en", "en/bob"),
        ("es/ana/b.wav", "es", "es/ana"),
        ("top.flac", "", "."),
    ]
    assert found[0].id == "mine/en/bob/a"


def test_a_language_of_the_whole_source_wins(tmp_path: Path) -> None:
    touch(tmp_path, "anything/a.wav")
    assert list_recordings(Source(name="mine", language="fr"), tmp_path)[0].language == "fr"


def test_librispeech_names_the_speaker(tmp_path: Path) -> None:
    touch(tmp_path, "train-clean-100/103/1240/103-1240-0000.flac")
    (recording,) = list_recordings(Source(name="ls", adapter="librispeech"), tmp_path)
    assert (recording.language, recording.speaker) == ("en", "103")


def test_links_to_folders_are_followed(tmp_path: Path) -> None:
    touch(tmp_path, "real/en/a.wav")
    (tmp_path / "root").mkdir()
    (tmp_path / "root/own").symlink_to(tmp_path / "real")
    assert [r.path for r in list_recordings(Source(name="s"), tmp_path / "root")] == [
        "own/en/a.wav"
    ]


def test_two_files_with_one_id_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "en/a.wav", "en/a.mp3")
    with pytest.raises(
        DataError, match=r"en/a.mp3 and en/a.wav differ by suffix alone; remove one"
    ):
        list_recordings(Source(name="s"), tmp_path)


def test_a_part_that_is_out_of_reach_is_never_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "root/en/a.wav")
    (tmp_path / "root/es").symlink_to(tmp_path / "not mounted")
    with pytest.raises(BackendError, match=r"data\.mine: .*root/es: No such file") as error:
        list_recordings(Source(name="mine"), tmp_path / "root")
    assert error.value.cause == Cause.STORAGE


def test_a_root_that_is_gone_is_no_empty_one(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=f"data.mine: {tmp_path}/root: No such file"):
        list_recordings(Source(name="mine"), tmp_path / "root")
