"""A Kaldi data folder: ``wav.scp``, and ``segments``, ``utt2spk``, ``utt2lang`` where they are.

kaldi-asr.org/doc/data_prep.html. A pipe in ``wav.scp`` is a command for a shell: refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from jobs.audio.corpora.recording import Recording
from jobs.audio.languages import language_code
from jobs.audio.lists import Files, lines, seconds
from jobs.audio.trees import Leaf, Tree
from orchestrator.errors import DataError, RequestError

_IN_ARK = re.compile(r".*\.ark:[0-9]+")


class _Utterance(NamedTuple):
    """A line of ``segments``, or of ``wav.scp`` where there is none."""

    name: str
    recording: str
    spans_s: tuple[tuple[float, float], ...] = ()
    channel: int | None = None


def recordings(tree: Tree) -> Iterator[Recording]:
    """All utterances, or whole recordings where there are no ``segments``.

    Raises RequestError for a pipe, DataError for what is no such folder.
    """
    files = Files(tree, tree.leaves())
    if "wav.scp" not in files:
        raise DataError("has no wav.scp; it is no Kaldi data folder")
    audio = _audio(tree, files)
    speakers, languages = (_words(tree, files, name) for name in ("utt2spk", "utt2lang"))
    for utterance in _utterances(tree, files, audio):
        yield Recording(
            utterance.name,
            audio[utterance.recording],
            spans_s=utterance.spans_s,
            channel=utterance.channel,
            language=language_code(languages.get(utterance.name, "")),
            speaker=speakers.get(utterance.name, ""),
            session=utterance.recording,
        )


def _audio(tree: Tree, files: Files) -> dict[str, Leaf]:
    """The file of each recording."""
    found = {}
    for name, (where, path) in _table(tree, files, "wav.scp").items():
        if path.endswith("|") or path.startswith("|"):
            raise RequestError(
                f"wav.scp: {name}: {path!r} is a command for a shell; write the files that it makes"
            )
        if _IN_ARK.fullmatch(path):
            raise DataError(f"{where}: {path} lies in an archive of Kaldi's; write it as a file")
        found[name] = files.named(where, path)
    return found


def _utterances(tree: Tree, files: Files, audio: Mapping[str, Leaf]) -> Iterator[_Utterance]:
    if "segments" not in files:
        yield from (_Utterance(name, name) for name in audio)
        return
    for name, (where, words) in _table(tree, files, "segments").items():
        recording, *times = words.split()
        if len(times) not in (2, 3) or not all(channel.isdecimal() for channel in times[2:]):
            raise DataError(
                f"{where}: {words!r}: no recording, start and end in seconds; repair it"
            )
        if recording not in audio:
            raise DataError(f"{where}: {recording} is not in wav.scp; add it there")
        start, end = (seconds(time, "time", where) for time in times[:2])
        span = (start, float("inf") if end < 0 else end)
        yield _Utterance(name, recording, (span,), int(times[2]) if times[2:] else None)


def _words(tree: Tree, files: Files, name: str) -> dict[str, str]:
    """A table that need not be there, without where its lines are."""
    table = _table(tree, files, name) if name in files else {}
    return {first: rest for first, (_, rest) in table.items()}


def _table(tree: Tree, files: Files, name: str) -> dict[str, tuple[str, str]]:
    """A file of lines that begin with an id: where each is, and what follows.

    Raises DataError for an id with nothing, and for one with two things.
    """
    found: dict[str, tuple[str, str]] = {}
    for where, line in lines(tree, files[name]):
        first, *rest = line.split(maxsplit=1)
        if not rest:
            raise DataError(f"{where}: {first} is alone; repair it")
        before, told = found.setdefault(first, (where, rest[0].strip()))
        if told != rest[0].strip():
            raise DataError(f"{where}: {first} is also in {before}; keep one, or rename it")
    return found
