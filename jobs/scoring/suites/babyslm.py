"""BabySLM: words and sentences that children hear, against non-words and ungrammatical ones.

Source: arXiv 2306.01506; scorer and data: github.com/MarvinLvn/BabySLM.

Layout: ``{lexical,syntactic}/{dev,test}/*.wav`` with ``gold.csv`` as in sWUGGY and sBLIMP; a word's
file stands in as many rows as it has non-words. A lexical score is the mean over the non-words of a
word in a voice, then over its voices, then over words (by their phones where no non-word is spelt,
so that homophones are one). A syntactic one is sBLIMP's by pair. Frequencies are of CHILDES, in the
bands of sWUGGY, whose official labels are off by one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from jobs.scoring.suites import sblimp, swuggy
from jobs.scoring.suites.gold import Row, gold_part, paired
from jobs.scoring.suites.sblimp import sentence_pairs, type_table
from jobs.scoring.suites.suite import Figure, Pair, Part, Suite, absent, suite_of
from jobs.scoring.suites.swuggy import at, text_column, word_groups, word_tables
from orchestrator.errors import DataError

NAME = "BabySLM"
LEXICAL, SYNTACTIC = "lexical", "syntactic"
SOURCE = (
    "cognitive-ml.fr/downloads/baby-slm/evaluation_sets/{lexical,syntactic}/{dev,test}.zip and "
    "unpack each where it says, so that lexical/dev/gold.csv is there"
)


def open_layout(root: Path) -> Suite:
    """Read the suite. Raises RequestError where it is not there, DataError where it is damaged."""
    parts = [
        _part(root, task, split)
        for split in ("dev", "test")
        for task in (LEXICAL, SYNTACTIC)
        if (root / task / split).is_dir()
    ]
    if not parts:
        raise absent("babyslm", root, wanted="lexical/dev or syntactic/dev", source=SOURCE)
    return suite_of("babyslm", NAME, parts)


def _part(root: Path, task: str, split: str) -> Part:
    read = partial(
        gold_part, root, root / task / split, split, prefix=f"{split}/{task}/", once=False
    )
    if task == LEXICAL:
        return read(columns=swuggy.COLUMNS, pairs=_word_pairs)
    return read(columns=sblimp.COLUMNS, pairs=_sentence_pairs)


def _word_pairs(rows: Sequence[Row], prefix: str) -> Iterator[Pair]:
    text = text_column(rows)
    found = paired(rows, ("id", "voice"))
    num_non_words = Counter((word.get(text), word.get("voice")) for word, _ in found)
    for word, non_word in found:
        if not (name := word.get(text)):
            raise DataError(f"{word.where}: {text} is empty; see that the file came over whole")
        voice = word.get("voice")
        yield Pair(
            item=f"{LEXICAL}/{name}",
            positive=prefix + word.stem,
            negative=prefix + non_word.stem,
            voice=voice,
            groups={"task": LEXICAL} | word_groups(word),
            texts=(name, non_word.get(text)),
            weight=1 / num_non_words[name, voice],
        )


def _sentence_pairs(rows: Sequence[Row], prefix: str) -> Iterator[Pair]:
    for pair in sentence_pairs(rows, prefix):
        yield replace(
            pair, item=f"{SYNTACTIC}/{pair.item}", groups={"task": SYNTACTIC} | dict(pair.groups)
        )


def figures(items: Mapping[str, Sequence[Pair]]) -> list[Figure]:
    """Lexical and syntactic, with their tables."""
    first = [pairs[0].groups for pairs in items.values()]
    definitions = {
        LEXICAL: "mean over a word's non-words in a voice, then over its voices, then over words",
        SYNTACTIC: "mean over voices, then over all pairs of sentences",
    }
    types = {g["type"] for g in first if "type" in g}
    return [
        *(
            Figure(name=task, definition=definition, strata=(where,))
            for task, definition in definitions.items()
            if (where := at(first, "task", task))
        ),
        *word_tables(first, corpus="CHILDES"),
        *type_table({kind: at(first, "type", kind) for kind in sorted(types)}),
    ]
