"""SALMon: is speech whose voice, feeling, noise or room stays likelier than where it changes?

Source: arXiv 2409.07437; scorer and data: github.com/slp-rl/salmon (CC BY-NC 4.0).

Layout: ``<task>/sample_<i>_<j>.wav``; of each i, j = 0 is the positive and the only other j the
negative. Eight tasks of 200 pairs, one number for each; there is no official mean of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jobs.scoring.suites.suite import WHOLE, Figure, Pair, Part, Suite, absent, suite_of, wavs
from jobs.scoring.suites.swuggy import at
from orchestrator.errors import DataError

NAME = "SALMon"
TASKS = {
    "sentiment_consistency": "Sentiment Consistency",
    "speaker_consistency": "Speaker Consistency",
    "gender_consistency": "Gender Consistency",
    "bg_domain_consistency": "Background Consistency (In-Domain)",
    "bg_all_consistency": "Background Consistency (Random)",
    "rir_consistency": "Room Consistency",
    "sentiment_alignment": "Sentiment Alignment",
    "bg_alignment": "Background Alignment",
}
"""Folders, and what the leaderboard calls them, in its order."""
SOURCE = (
    "github.com/slp-rl/salmon (salmon_benchmark.zip) and give the folder it unpacks to, with all "
    "eight tasks"
)
_NAME = re.compile(r"sample_(?P<sample>\d+)_(?P<which>\d+)")


def open_layout(root: Path) -> Suite:
    """Read the suite. Raises RequestError where it is not there, DataError where it is damaged."""
    inner = root / "salmon_benchmark"
    folder = inner if inner.is_dir() else root
    if gone := [task for task in TASKS if not (folder / task).is_dir()]:
        raise absent("salmon", root, wanted=" and no ".join(gone), source=SOURCE)
    parts = []
    for task in TASKS:
        files = wavs(root, folder / task, f"{task}/")
        parts.append(Part(split=WHOLE, files=files, pairs=list(_pairs(task, files))))
    return suite_of("salmon", NAME, parts)


def _pairs(task: str, files: Mapping[str, tuple[str, int]]) -> Iterator[Pair]:
    samples: dict[int, list[tuple[int, str]]] = {}
    for id_, (path, _) in files.items():
        if not (match := _NAME.fullmatch(id_.rpartition("/")[2])):
            raise DataError(f"{path}: is not called sample_<i>_<j>.wav; take it away")
        samples.setdefault(int(match["sample"]), []).append((int(match["which"]), id_))
    for sample, found in sorted(samples.items()):
        found.sort()
        if len(found) != 2 or found[0][0] != 0:
            paths = " and ".join(files[id_][0] for _, id_ in found)
            raise DataError(
                f"{paths}: sample {sample} is to be two files, of which sample_{sample}_0.wav is "
                "the positive; see that all was unpacked"
            )
        yield Pair(
            item=f"{task}/{sample}",
            positive=found[0][1],
            negative=found[1][1],
            groups={"task": task},
        )


def figures(items: Mapping[str, Sequence[Pair]]) -> list[Figure]:
    """One for each task."""
    first = [pairs[0].groups for pairs in items.values()]
    return [
        Figure(name=task, definition=f"{title}: mean over pairs", strata=(at(first, "task", task),))
        for task, title in TASKS.items()
        if at(first, "task", task)
    ]
