from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.audio.listing import list_recordings
from orchestrator.errors import BackendError, Cause
from orchestrator.spec.recipe import Source
from tests.unit.orchestrator.ledger.test_source_files import deep_folder


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


def test_files_that_differ_by_suffix_alone_keep_it(tmp_path: Path) -> None:
    touch(tmp_path, "en/a.wav", "en/a.mp3", "en/b.wav", "en/a.txt")
    found = list_recordings(Source(name="s"), tmp_path)
    assert [r.id for r in found] == ["s/en/a.mp3", "s/en/a.wav", "s/en/b"]


def test_what_is_no_audio_file_for_now_has_a_problem(tmp_path: Path) -> None:
    touch(tmp_path, "en/a.wav")
    (tmp_path / "en/README").symlink_to("/nowhere/README")
    (tmp_path / "en/b.wav").symlink_to("/nowhere/b.wav")
    os.mkfifo(tmp_path / "en/c.wav")
    found = list_recordings(Source(name="s"), tmp_path)
    assert [(r.path, r.problem) for r in found] == [
        ("en/a.wav", ""),
        ("en/b.wav", "a dead link"),
        ("en/c.wav", "no regular file"),
    ]


def test_a_part_that_is_out_of_reach_is_never_left_out(tmp_path: Path) -> None:
    deep_folder(tmp_path)
    with pytest.raises(BackendError, match=r"data\.mine: .*File name too long") as error:
        list_recordings(Source(name="mine"), tmp_path)
    assert error.value.cause == Cause.STORAGE


def test_a_root_that_is_gone_is_no_empty_one(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=f"data.mine: {tmp_path}/root: No such file"):
        list_recordings(Source(name="mine"), tmp_path / "root")
