"""What a store does not take is kept on this machine, and read where it would have been."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from orchestrator.errors import Cause
from orchestrator.ledger import last_words
from orchestrator.ledger.attempt import AttemptFolder
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.storage import Storage


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


class Full(Storage):
    """A folder that takes nothing for as long as ``code`` says why."""

    code = 0

    def create(self, path: str, data: bytes) -> None:
        if self.code:
            raise OSError(self.code, "refused", f"{self.url}/{path}")
        super().create(path, data)


def attempt(folder: Path, code: int) -> AttemptFolder:
    storage = Full(str(folder / "attempts" / "0001"))
    storage.create_json("attempt.json", {"number": 1, "started_at": 5.0})
    storage.code = code
    return AttemptFolder(1, storage)


def test_words_are_found_until_they_are_forgotten() -> None:
    assert last_words.find("/a", "end") is None
    assert last_words.leave("/a", "end", {"n": 1})
    assert last_words.leave("/a", "end", {"n": 2})
    assert last_words.leave("/b", "end", {"n": 3})
    assert last_words.find("/a", "end") == {"n": 2}
    assert last_words.find("/a", "other") is None
    last_words.forget("/a", "other", "end")
    assert last_words.find("/a", "end") is None
    assert last_words.find("/b", "end") == {"n": 3}


def test_a_temporary_folder_that_is_as_full_is_not_the_only_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder can be made here")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "file"))
    url = str(tmp_path)
    assert last_words.leave(url, "end", {"n": 1})
    assert last_words.find(url, "end") == {"n": 1}
    last_words.forget(url, "end")
    assert last_words.find(url, "end") is None


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE])
def test_an_end_that_the_store_does_not_take_is_kept_and_written_later(
    tmp_path: Path, code: int
) -> None:
    ended = attempt(tmp_path, code)
    with pytest.raises(OSError, match="refused"):
        ended.finish(state="failed", cause=Cause.STORAGE)
    again = AttemptFolder(1, Storage(ended.storage.url))
    assert again.end is not None
    assert (again.end["state"], again.end["cause"]) == ("failed", "storage")
    kept = again.end
    again.settle()
    assert again.storage.read_json("end.json") == kept
    assert last_words.find(ended.storage.url, "end") is None
    again.settle()  # nothing is left to say


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ESTALE])
def test_why_a_driver_failed_is_kept_too(tmp_path: Path, code: int) -> None:
    failed = attempt(tmp_path, code)
    with pytest.raises(OSError, match="refused"):
        failed.record_failure(Cause.NONFINITE, "not finite")
    found = AttemptFolder(1, Storage(failed.storage.url)).failure
    assert (found["cause"], found["message"]) == ("nonfinite", "not finite")


def test_what_was_kept_of_a_run_that_was_removed_is_not_said_of_the_next(tmp_path: Path) -> None:
    run = RunFolder(Storage(str(tmp_path / "runs" / "small")))
    last_words.leave(f"{run.storage.url}/stages/train-1/attempts/0001", "end", {"state": "failed"})
    assert run.begin_attempt("train-1").end is None
