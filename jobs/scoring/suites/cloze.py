"""Spoken StoryCloze: is a story's own ending likelier than another? (sSC and tSC).

Source: TWIST (arXiv 2305.13009; the data: github.com/slp-rl/SpokenStoryCloze). In sSC the other
ending is the one that StoryCloze gives, in tSC a random one, which only changes the topic.

Layout: ``<n>_<story id>_correct.wav`` and ``<n>_<story id>_incorrect.wav`` in one folder, or in one
folder for each speaker. Endings are paired by the id of their story, never by the order of files,
which sorts 10 before 9. The score is the mean over stories; an ending as likely as the other counts
0.5, where some readers of the suite count 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jobs.scoring.suites.suite import (
    WHOLE,
    Figure,
    Pair,
    Part,
    Suite,
    absent,
    subfolders,
    suite_of,
    wavs,
)
from orchestrator.errors import DataError

_NAME = re.compile(r"(?:\d+_)?(?P<story>.+)_(?P<which>correct|incorrect)")


def open_cloze(kind: str, name: str, root: Path) -> Suite:
    """Read one. Raises RequestError where it is not there, DataError where it is damaged."""
    folder = root / name if (root / name).is_dir() else root
    voices = {"": folder} | subfolders(folder)
    found = {
        voice: wavs(root, path, f"{voice}/" if voice else "")
        for voice, path in voices.items()
        if path.is_dir()
    }
    if not any(found.values()):
        source = (
            f"github.com/slp-rl/SpokenStoryCloze (the {name} archive) and unpack it there; or "
            "speak a StoryCloze text file yourself (python -m recipes.suite_material --help)"
        )
        wanted = "<n>_<story>_correct.wav and _incorrect.wav"
        raise absent(kind, root, wanted=wanted, source=source)
    pairs = [pair for voice, files in found.items() for pair in _pairs(voice, files)]
    files = {id_: file for part in found.values() for id_, file in part.items()}
    return suite_of(kind, name, [Part(split=WHOLE, files=files, pairs=pairs)])


def _pairs(voice: str, files: Mapping[str, tuple[str, int]]) -> Iterator[Pair]:
    stories: dict[str, dict[str, str]] = {}
    for id_ in sorted(files):
        path = files[id_][0]
        if not (match := _NAME.fullmatch(id_.rpartition("/")[2])):
            raise DataError(
                f"{path}: is not called <n>_<story>_correct.wav or _incorrect.wav; take it away"
            )
        endings = stories.setdefault(match["story"], {})
        if match["which"] in endings:
            other = files[endings[match["which"]]][0]
            raise DataError(f"{path}: the {match['which']} ending is {other} already; leave one")
        endings[match["which"]] = id_
    for story, endings in stories.items():
        if len(endings) < 2:
            (path,) = (files[id_][0] for id_ in endings.values())
            raise DataError(f"{path}: story {story} has no other ending; see that all was unpacked")
        yield Pair(
            item=story, positive=endings["correct"], negative=endings["incorrect"], voice=voice
        )


def figures(items: Mapping[str, Sequence[Pair]]) -> list[Figure]:
    """The one number there is."""
    return [
        Figure(
            name="accuracy",
            definition="mean over voices, then over stories",
            strata=(tuple(range(len(items))),),
        )
    ]
