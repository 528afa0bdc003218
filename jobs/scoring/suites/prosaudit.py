"""ProsAudit: is speech with a pause in a natural place likelier than with one elsewhere?

Source: arXiv 2302.12057; scorer: github.com/zerospeech/benchmarks (tasks/lm/prosody.py).

Layout (after the scorer's names of its subsets; the archive itself was not at hand):
``english_{dev,test}`` or ``english/{dev,test}``, each with its audio and ``gold.csv``
(filename, id, voice, type, subtype, correct), of types ``lexical`` and ``protosyntax``. The score
of an id is the mean over all its pairs; there is one official number for each type, none over both.
Units without pitch tell little of prosody, so that chance is near.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from jobs.scoring.suites.gold import Row, gold_part, paired
from jobs.scoring.suites.suite import Figure, Pair, Suite, absent, suite_of
from jobs.scoring.suites.swuggy import at

NAME = "ProsAudit"
COLUMNS = ("id", "type")
SOURCE = (
    "zerospeech.com (pip install zerospeech-benchmarks; zrc datasets:pull prosaudit-dataset) and "
    "give the folder that holds english_dev/gold.csv or english/dev/gold.csv"
)


def open_layout(root: Path) -> Suite:
    """Read the suite. Raises RequestError where it is not there, DataError where it is damaged."""
    read = partial(gold_part, columns=COLUMNS, pairs=_pairs)
    there = (
        (split, root / name)
        for split in ("dev", "test")
        for name in (f"english_{split}", f"english/{split}")
        if (root / name).is_dir()
    )
    if not (parts := [read(root, folder, split) for split, folder in there]):
        raise absent("prosaudit", root, wanted="english_dev or english/dev", source=SOURCE)
    return suite_of("prosaudit", NAME, parts)


def _pairs(rows: Sequence[Row], prefix: str) -> Iterator[Pair]:
    for good, bad in paired(rows, ("type", "subtype", "id", "voice")):
        yield Pair(
            item=f"{good.get('type')}/{good.get('id')}",
            positive=prefix + good.stem,
            negative=prefix + bad.stem,
            voice=good.get("voice"),
            groups={"type": good.get("type"), "id": good.get("id")},
        )


def figures(items: Mapping[str, Sequence[Pair]]) -> list[Figure]:
    """One for each type."""
    first = [pairs[0].groups for pairs in items.values()]
    return [
        Figure(
            name=kind,
            definition=f"mean over the pairs of an id, then over all ids of type {kind}",
            strata=(at(first, "type", kind),),
        )
        for kind in sorted({g["type"] for g in first})
    ]
