"""sWUGGY: is a word likelier than a non-word?

Source: ZeroSpeech 2021 (arXiv 2011.11588; scorer: github.com/zerospeech/zerospeech2021).

Layout: ``lexical/{dev,test}/*.wav`` with ``gold.csv`` (filename, id, voice, frequency, word,
phones, length, correct). A word and a non-word are a pair where id and voice agree; the score of an
id is the mean over voices.

Frequency is how often LibriSpeech has the word. The official bands are cut at 1, 5, 20 and 100, the
lower edge included, and labelled oov, 1-5, 6-20, 21-100 and >100: a word of frequency 5 is in the
band called 6-20, one of 100 in >100. The edges are kept, so that scores are equal to the official
ones, and named as they are. "In vocabulary" is the mean over bands without oov, weighted by their
sizes: a mean over all words of a known frequency of 1 or more.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from jobs.scoring.suites.gold import Row, gold_part, number, paired
from jobs.scoring.suites.suite import Figure, Pair, Part, Suite, natural, open_splits

NAME = "sWUGGY"
_EDGES = (0, 1, 5, 20, 100)
BANDS = ("0", "1-4", "5-19", "20-99", "100 and more")
"""What the bands hold."""
OFFICIAL_BANDS = ("oov", "1-5", "6-20", "21-100", ">100")
"""What the official tables call them."""
COLUMNS = ("id", "voice", "frequency", "word", "phones", "length")
SOURCE = (
    "zerospeech.com (pip install zerospeech-benchmarks; zrc datasets:pull sLM21-dataset) and give "
    "the folder of which lexical/ and syntactic/ are part"
)


def open_layout(root: Path) -> Suite:
    """Read the suite. Raises RequestError where it is not there, DataError where it is damaged."""
    return open_splits("swuggy", NAME, root, "lexical", _part, source=SOURCE)


def _part(root: Path, folder: Path, split: str) -> Part:
    return gold_part(root, folder, split, columns=COLUMNS, pairs=_pairs)


def _pairs(rows: Sequence[Row], prefix: str) -> Iterator[Pair]:
    text = text_column(rows)
    for word, non_word in paired(rows, ("id", "voice")):
        yield Pair(
            item=word.get("id"),
            positive=prefix + word.stem,
            negative=prefix + non_word.stem,
            voice=word.get("voice"),
            groups=word_groups(word),
            texts=(word.get(text), non_word.get(text)),
        )


def text_column(rows: Sequence[Row]) -> str:
    """What names a word in the official tables: its phones where no non-word is spelt."""
    return "word" if any(row.get("word") for row in rows if not row.is_correct) else "phones"


def word_groups(word: Row) -> dict[str, str]:
    """The bands of a word, an empty one where the gold file does not tell."""
    frequency, length = number(word, "frequency"), number(word, "length")
    known = frequency is not None and frequency >= 0
    return {
        "frequency": BANDS[bisect_right(_EDGES, frequency) - 1]
        if known and frequency is not None
        else "",
        "length": "" if length is None else str(length),
    }


def figures(items: Mapping[str, Sequence[Pair]]) -> list[Figure]:
    """All, in vocabulary, and by frequency and length."""
    first = [pairs[0].groups for pairs in items.values()]
    known = tuple(n for n, g in enumerate(first) if g["frequency"] not in ("", BANDS[0]))
    found = [
        Figure(
            name="all",
            definition="mean over voices, then over all pairs",
            strata=(tuple(range(len(first))),),
        )
    ]
    if known:
        found.append(
            Figure(
                name="in vocabulary",
                definition="the same over pairs whose word LibriSpeech has (official: bands "
                "without oov, weighted by their size)",
                strata=(known,),
            )
        )
    return found + word_tables(first)


def word_tables(first: Sequence[Mapping[str, str]], *, corpus: str = "LibriSpeech") -> list[Figure]:
    """By frequency (in a corpus) and by length, of items whose groups are given in order."""
    labels = dict(zip(BANDS, OFFICIAL_BANDS, strict=True))
    return [
        *(
            Figure(
                name=f"frequency {band}",
                definition=f"words that {corpus} has {band} times (official label {label})",
                strata=(where,),
                table="frequency",
            )
            for band, label in labels.items()
            if (where := at(first, "frequency", band))
        ),
        *(
            Figure(
                name=f"length {length}",
                definition=f"words of {length} phones",
                strata=(at(first, "length", length),),
                table="length",
            )
            for length in sorted({g.get("length", "") for g in first} - {""}, key=natural)
        ),
    ]


def at(first: Sequence[Mapping[str, str]], group: str, value: str) -> tuple[int, ...]:
    """Positions of the items of a group."""
    return tuple(n for n, groups in enumerate(first) if groups.get(group) == value)
