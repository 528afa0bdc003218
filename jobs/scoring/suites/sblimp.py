"""sBLIMP: is a grammatical sentence likelier than an ungrammatical one?

Source: ZeroSpeech 2021 (arXiv 2011.11588; scorer: github.com/zerospeech/zerospeech2021).

Layout: ``syntactic/{dev,test}/*.wav`` with ``gold.csv`` (filename, id, voice, type, subtype,
transcription, correct). The official scorer pairs the n-th correct row with the n-th incorrect one;
here type, subtype, id and voice must agree, which is the same on the official files and right in
any order of rows. The score of a pair is the mean over voices.

Two numbers go by the name of sBLIMP: the mean over pairs (the leaderboard's; micro), and the mean
over types of the mean over pairs (in some papers; macro). Both are given, by their names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jobs.scoring.suites.gold import Row, gold_part, paired
from jobs.scoring.suites.suite import Figure, Pair, Part, Suite, open_splits
from jobs.scoring.suites.swuggy import SOURCE, at

NAME = "sBLIMP"
COLUMNS = ("id", "voice", "type", "subtype", "transcription")


def open_layout(root: Path) -> Suite:
    """Read the suite. Raises RequestError where it is not there, DataError where it is damaged."""
    return open_splits("sblimp", NAME, root, "syntactic", _part, source=SOURCE)


def _part(root: Path, folder: Path, split: str) -> Part:
    return gold_part(root, folder, split, columns=COLUMNS, pairs=sentence_pairs)


def sentence_pairs(rows: Sequence[Row], prefix: str) -> Iterator[Pair]:
    """A good sentence and a bad one, where type, subtype, id and voice agree."""
    for good, bad in paired(rows, ("type", "subtype", "id", "voice")):
        kind, subtype = good.get("type"), good.get("subtype")
        yield Pair(
            item=f"{kind}/{subtype}/{good.get('id')}",
            positive=prefix + good.stem,
            negative=prefix + bad.stem,
            voice=good.get("voice"),
            groups={"type": kind, "subtype": subtype},
            texts=(good.get("transcription"), bad.get("transcription")),
        )


def figures(items: Mapping[str, Sequence[Pair]]) -> list[Figure]:
    """By pair (micro), by type (macro), and each type."""
    first = [pairs[0].groups for pairs in items.values()]
    types = {kind: at(first, "type", kind) for kind in sorted({g["type"] for g in first})}
    return [
        Figure(
            name="by pair",
            definition="mean over voices, then over all pairs (the leaderboard's, micro)",
            strata=(tuple(range(len(first))),),
        ),
        Figure(
            name="by type",
            definition="mean over voices, then pairs of a type, then types (macro)",
            strata=tuple(types.values()),
        ),
        *type_table(types),
    ]


def type_table(types: Mapping[str, tuple[int, ...]]) -> list[Figure]:
    """A row for each type."""
    return [
        Figure(
            name=f"type {kind}",
            definition=f"mean over voices, then over pairs of type {kind}",
            strata=(where,),
            table="type",
        )
        for kind, where in types.items()
    ]
