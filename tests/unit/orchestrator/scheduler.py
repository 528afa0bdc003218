"""Scheduler commands on PATH that say what a test wants: real processes without a Slurm."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


class Answers:
    """A folder of scheduler commands on PATH that say what a test wants."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def say(self, command: str, text: str, code: int = 0) -> None:
        answer = self.folder / f"{command}.txt"
        answer.write_text(text)
        stream = ">&2" if code else ""
        script = self.folder / command
        log = self.folder / "asked"
        script.write_text(
            f'#!/bin/sh\necho "{command} $*" >> {log}\ncat {answer} {stream}\nexit {code}\n'
        )
        script.chmod(0o755)

    @property
    def asked(self) -> list[str]:
        log = self.folder / "asked"
        return log.read_text().splitlines() if log.exists() else []


def answers_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Answers:
    """Answers that this process's commands get."""
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return Answers(folder)
