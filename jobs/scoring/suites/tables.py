"""The tables that the official scorers write, byte for byte: CSV, scores with four decimals.

Where a suite's scorer writes none (spoken StoryCloze, SALMon), there is none here.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jobs.scoring.suites.babyslm import LEXICAL, SYNTACTIC
from jobs.scoring.suites.scores import SplitScores, score_split
from jobs.scoring.suites.suite import Suite, natural
from jobs.scoring.suites.swuggy import BANDS, OFFICIAL_BANDS
from orchestrator.stratified import Floats


def tables(suite: Suite, log_probs: Mapping[str, float]) -> dict[str, str]:
    """File name to text, for each split that has pairs. Raises DataError as `score_suite` does."""
    write = _TABLES.get(suite.kind)
    found: dict[str, str] = {}
    for split in suite.splits if write else ():
        scored = score_split(suite, log_probs, split)
        if write and scored.items:
            found |= write(split, scored)
    return found


def lexical_tables(split: str, scored: SplitScores) -> dict[str, str]:
    """By pair, by frequency (in the official bands, by their official labels), by length."""
    name = f"score_lexical_{split}_by_"
    return {
        f"{name}pair.csv": as_csv(("word", "non word", "score"), _by_pair(scored)),
        **word_tables(name, _groups(scored), scored.scores),
    }


def word_tables(name: str, groups: Sequence[Mapping[str, str]], scores: Floats) -> dict[str, str]:
    """The tables by frequency and by length of items whose groups are given in order."""
    lengths = sorted({g["length"] for g in groups} - {""}, key=natural)
    labels = zip(BANDS, OFFICIAL_BANDS, strict=True)
    return {
        f"{name}frequency.csv": _breakdown("frequency", labels, groups, scores),
        f"{name}length.csv": _breakdown(
            "length", zip(lengths, lengths, strict=True), groups, scores
        ),
    }


def syntactic_tables(split: str, scored: SplitScores) -> dict[str, str]:
    """By pair and by type."""
    name = f"score_syntactic_{split}_by_"
    return {
        f"{name}pair.csv": as_csv(("sentence", "non sentence", "score"), _by_pair(scored)),
        f"{name}type.csv": type_table(_groups(scored), scored.scores),
    }


def _groups(scored: SplitScores) -> list[Mapping[str, str]]:
    """Those of each item, which all its pairs share."""
    return [pairs[0].groups for pairs in scored.items.values()]


def _by_pair(scored: SplitScores) -> list[tuple[str, ...]]:
    """What both of each item say, and its score."""
    items = zip(scored.items.values(), scored.scores, strict=True)
    return [(*pairs[0].texts, four(score)) for pairs, score in items]


def type_table(groups: Sequence[Mapping[str, str]], scores: Floats) -> str:
    """The table by type of items whose groups are given in order."""
    kinds = sorted({g["type"] for g in groups})
    return _breakdown("type", zip(kinds, kinds, strict=True), groups, scores)


def _breakdown(
    column: str,
    labels: Iterable[tuple[str, str]],
    groups: Sequence[Mapping[str, str]],
    scores: Floats,
) -> str:
    """One row for each value: how many, mean and sample standard deviation."""
    rows = []
    for value, label in labels:
        own = scores[[n for n, g in enumerate(groups) if g[column] == value]]
        mean = four(float(own.mean())) if len(own) else ""
        rows.append(
            (label, len(own), mean, four(float(np.std(own, ddof=1))) if len(own) > 1 else "")
        )
    return as_csv((column, "n", "score", "std"), rows)


def four(value: float) -> str:
    """A score as the official tables print it."""
    return f"{value:.4f}"


def as_csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """CSV with a header, as pandas writes it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return out.getvalue()


def prosodic_tables(split: str, scored: SplitScores) -> dict[str, str]:
    """By pair and by type."""
    groups = _groups(scored)
    by_pair = [(g["id"], g["type"], four(v)) for g, v in zip(groups, scored.scores, strict=True)]
    name = f"score_prosodic_english_{split}_by_"
    return {
        f"{name}pair.csv": as_csv(("id", "type", "score"), by_pair),
        f"{name}type.csv": type_table(groups, scored.scores),
    }


def baby_tables(split: str, scored: SplitScores) -> dict[str, str]:
    """Of words, by word, frequency and length; of sentences, by pair and type; and both numbers."""
    found: dict[str, str] = {}
    for task, write in ((LEXICAL, baby_words), (SYNTACTIC, syntactic_tables)):
        where = [n for n, (p, *_) in enumerate(scored.items.values()) if p.groups["task"] == task]
        if where:
            named = list(scored.items.items())
            part = scored._replace(items=dict(named[n] for n in where), scores=scored.scores[where])
            overall = f"{part.scores.mean()}\n"
            found |= {f"overall_accuracy_{task}_{split}.txt": overall} | write(split, part)
    return found


def baby_words(split: str, scored: SplitScores) -> dict[str, str]:
    """By word (all its non-words and voices in one row), by frequency, by length."""
    rows = []
    for pairs, score in zip(scored.items.values(), scored.scores, strict=True):
        voices = sorted({pair.voice for pair in pairs})
        non_words = [pair.texts[1] for pair in pairs if pair.voice == voices[0]]
        rows.append((pairs[0].texts[0], "/".join(non_words), "/".join(voices), four(score)))
    name = f"score_lexical_{split}_by_"
    return {
        f"{name}pair.csv": as_csv(("word", "non words", "voices", "score"), sorted(rows)),
        **word_tables(name, _groups(scored), scored.scores),
    }


_TABLES: dict[str, Callable[[str, SplitScores], dict[str, str]]] = {
    "swuggy": lexical_tables,
    "sblimp": syntactic_tables,
    "prosaudit": prosodic_tables,
    "babyslm": baby_tables,
}
