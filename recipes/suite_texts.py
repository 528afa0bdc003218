"""What suites made here let a synthesiser say: words and non-words, sentences, stories.

Pairs are minimal, and balanced where they can be: what tells a positive from its negative is never
a word or a phone that positives have more of. Everything is a pure function of a seed and of what
it is given, in an order of its own.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import pairwise, product
from pathlib import Path
from typing import NamedTuple

from orchestrator.errors import RequestError

Phones = tuple[str, ...]
"""ARPAbet with stress, as the CMU Pronouncing Dictionary writes it: ``("K", "AE1", "T")``."""

_VOWELS = ("AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW")
_CONSONANTS = (
    *("B", "CH", "D", "DH", "F", "G", "HH", "JH", "K", "L", "M", "N", "NG"),
    *("P", "R", "S", "SH", "T", "TH", "V", "W", "Y", "Z", "ZH"),
)
_EDGE = "#"
_MIN_PHONES, _MAX_PHONES = 4, 9
_MAX_LEAD = 2
"""Pairs more in which words have the commoner phones than pairs in which non-words have them."""


class Word(NamedTuple):
    """A word, and a non-word that is as much like words of the language as it is."""

    spelling: str
    phones: Phones
    non_word: Phones


class Lexicon:
    """Common words of a dictionary, and which sequences of phones they have.

    No word of the dictionary, be it rare, passes for a non-word.
    """

    def __init__(self, dictionary: Mapping[str, Sequence[Phones]], common: Iterable[str]) -> None:
        self._known = {bare(phones) for all_of in dictionary.values() for phones in all_of}
        self.common = {word: dictionary[word][0] for word in common if word in dictionary}

    @cached_property
    def _grams(self) -> Counter[Phones]:
        return Counter(gram for phones in self.common.values() for gram in _grams(bare(phones)))

    def non_word_of(self, phones: Phones) -> Phones | None:
        """A non-word that differs in one phone, a vowel for a vowel or consonant for consonant.

        All its trigrams are those of words, and of all such the one is taken whose phones, bigrams
        and trigrams are most nearly as common as the word's: phonotactics alone shall not tell
        which is which.
        """
        candidates = [c for c in _changed(phones) if self._is_likely(bare(c))]
        own = self.commonness(bare(phones))
        by_distance = ((math.dist(self.commonness(bare(c)), own), c) for c in candidates)
        return min(by_distance, default=(0, None))[1]

    def _is_likely(self, phones: Phones) -> bool:
        return phones not in self._known and all(g in self._grams for g in _grams(phones))

    def commonness(self, phones: Phones) -> tuple[float, float, float]:
        """How common a sequence's phones, bigrams and trigrams are: sums of logarithms of counts.

        Those of n phones together, over all of the sequence and its edges.
        """
        sums = [0.0, 0.0, 0.0]
        for gram in _grams(phones):
            sums[len(gram) - 1] += math.log(self._grams[gram])
        return sums[0], sums[1], sums[2]


def bare(phones: Phones) -> Phones:
    """Without stress."""
    return tuple(phone.rstrip("012") for phone in phones)


def _grams(phones: Phones) -> Iterator[Phones]:
    padded = (_EDGE, *phones, _EDGE)
    yield from zip(phones, strict=True)
    yield from pairwise(padded)
    yield from zip(padded, padded[1:], padded[2:], strict=False)


def _changed(phones: Phones) -> Iterator[Phones]:
    """Every sequence with one other phone of the same kind, and with the same stress."""
    for n, phone in enumerate(phones):
        kind = phone.rstrip("012")
        stress = phone.removeprefix(kind)
        for other in _VOWELS if stress else _CONSONANTS:
            if other != kind:
                yield (*phones[:n], other + stress, *phones[n + 1 :])


def read_dictionary(text: str) -> dict[str, list[Phones]]:
    """Spelling to pronunciations, of the CMU Pronouncing Dictionary's format."""
    found: dict[str, list[Phones]] = {}
    for line in text.splitlines():
        spelling, _, phones = line.partition("#")[0].strip().partition(" ")
        if phones:
            found.setdefault(spelling.partition("(")[0], []).append(tuple(phones.split()))
    return found


def choose_words(lexicon: Lexicon, number: int, seed: int) -> list[Word]:
    """Some of the common words, each with its non-word.

    No two of them sound the same, and no non-word stands twice. Of all of them words are as often
    the ones with commoner phones, bigrams or trigrams as non-words are, so that counting these is
    at chance. Raises RequestError where there are not enough.
    """
    chosen: list[Word] = []
    lead = [0, 0, 0]
    taken: set[Phones] = set()
    for spelling in sorted(lexicon.common, key=lambda word: digest(seed, word)):
        phones = lexicon.common[spelling]
        if not _MIN_PHONES <= len(phones) <= _MAX_PHONES or bare(phones) in taken:
            continue
        non_word = lexicon.non_word_of(phones)
        if non_word is None or bare(non_word) in taken:
            continue
        common = zip(*(lexicon.commonness(bare(p)) for p in (phones, non_word)), strict=True)
        after = [ahead + (a > b) - (a < b) for ahead, (a, b) in zip(lead, common, strict=True)]
        if max(map(abs, after)) > _MAX_LEAD:
            continue
        lead = after
        taken |= {bare(phones), bare(non_word)}
        chosen.append(Word(spelling, phones, non_word))
        if len(chosen) == number:
            return chosen
    raise RequestError(f"--words: {len(chosen)} can be made; ask for no more")


class Sentence(NamedTuple):
    """A grammatical sentence, and one that breaks a single agreement."""

    kind: str
    subtype: str
    good: str
    bad: str


_NOUNS = (
    ("dog", "dogs"), ("teacher", "teachers"), ("farmer", "farmers"), ("doctor", "doctors"),
    ("singer", "singers"), ("horse", "horses"), ("soldier", "soldiers"), ("writer", "writers"),
)  # fmt: skip
_THINGS = (
    ("letter", "letters"), ("window", "windows"), ("garden", "gardens"), ("picture", "pictures"),
    ("table", "tables"), ("river", "rivers"), ("song", "songs"), ("basket", "baskets"),
)  # fmt: skip
_VERBS = (
    ("sleeps", "sleep"), ("runs", "run"), ("waits", "wait"), ("works", "work"),
    ("sings", "sing"), ("stays", "stay"),
)  # fmt: skip
_PLACES = ("near the house", "in the city", "by the river", "at the station")
_SEEN = ("saw", "liked", "found", "painted")
_DONE = ("hurt", "helped", "trusted", "described")
_PEOPLE = (("boy", "girl"), ("man", "woman"), ("king", "queen"), ("uncle", "aunt"))


Mirrored = tuple[Sentence, Sentence]
"""Two pairs, in which what is right in one is wrong in the other."""


def sentences(number: int, seed: int) -> list[Sentence]:
    """``number`` of each of four types, mirror images together; an odd number gives one less.

    Raises RequestError where there are not as many.
    """
    found: list[Sentence] = []
    for make in (_determiners, _subjects, _numbers, _genders):
        made = sorted(make(), key=lambda mirrored: digest(seed, mirrored[0].good))
        if number > 2 * len(made):
            raise RequestError(
                f"--sentences: {2 * len(made)} of {made[0][0].kind} can be made; ask for no more"
            )
        found += [sentence for mirrored in made[: number // 2] for sentence in mirrored]
    return found


def _determiners() -> Iterator[Mirrored]:
    kind, pairs = "determiner_noun_agreement", (("this", "these"), ("that", "those"))
    for (subject, _), (thing, things), seen, (near, nears) in product(
        _NOUNS, _THINGS, _SEEN, pairs
    ):
        one = (f"the {subject} {seen} {word} {thing}" for word in (near, nears))
        many = (f"the {subject} {seen} {word} {things}" for word in (nears, near))
        yield Sentence(kind, "singular", *one), Sentence(kind, "plural", *many)


def _subjects() -> Iterator[Mirrored]:
    kind = "subject_verb_agreement"
    for (noun, nouns), (runs, run), place in product(_NOUNS, _VERBS, _PLACES):
        one = (f"the {noun} {verb} {place}" for verb in (runs, run))
        many = (f"the {nouns} {verb} {place}" for verb in (run, runs))
        yield Sentence(kind, "singular", *one), Sentence(kind, "plural", *many)


def _numbers() -> Iterator[Mirrored]:
    kind = "anaphor_number_agreement"
    for (noun, nouns), done, place in product(_NOUNS, _DONE, _PLACES):
        own, owns = "itself" if noun in ("dog", "horse") else "herself", "themselves"
        one = (f"the {noun} {done} {word} {place}" for word in (own, owns))
        many = (f"the {nouns} {done} {word} {place}" for word in (owns, own))
        yield Sentence(kind, "singular", *one), Sentence(kind, "plural", *many)


def _genders() -> Iterator[Mirrored]:
    kind, his, her = "anaphor_gender_agreement", "himself", "herself"
    for (man, woman), done, place in product(_PEOPLE, _DONE, _PLACES):
        male = (f"the {man} {done} {word} {place}" for word in (his, her))
        female = (f"the {woman} {done} {word} {place}" for word in (her, his))
        yield Sentence(kind, "masculine", *male), Sentence(kind, "feminine", *female)


class Story(NamedTuple):
    """A context and two endings."""

    id: str
    context: str
    right: str
    wrong: str


_STORY_COLUMNS = (
    "InputStoryid",
    *(f"InputSentence{n}" for n in range(1, 5)),
    "RandomFifthSentenceQuiz1",
    "RandomFifthSentenceQuiz2",
    "AnswerRightEnding",
)


def read_stories(file: Path) -> list[Story]:
    """Stories of a StoryCloze file: CSV with the published columns.

    Raises RequestError, with the row, for a column, answer or id that is not as published.
    """
    try:
        with file.open(newline="", encoding="utf-8-sig") as text:
            reader = csv.DictReader(text)
            if gone := [c for c in _STORY_COLUMNS if c not in (reader.fieldnames or ())]:
                raise RequestError(
                    f"{file}: has no column {', '.join(gone)}; give a StoryCloze CSV as published"
                )
            found = [_story(f"{file}: row {reader.line_num}", row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RequestError(f"{file}: cannot be read ({error}); give a StoryCloze CSV") from None
    if len({story.id for story in found}) < len(found):
        raise RequestError(f"{file}: an InputStoryid stands twice; leave one of them")
    return found


def _story(where: str, row: Mapping[str, str | None]) -> Story:
    cells = {column: (row[column] or "").strip() for column in _STORY_COLUMNS}
    if empty := [column for column, cell in cells.items() if not cell]:
        raise RequestError(f"{where}: {', '.join(empty)} is empty; see that the file is whole")
    endings = cells["RandomFifthSentenceQuiz1"], cells["RandomFifthSentenceQuiz2"]
    if (answer := cells["AnswerRightEnding"]) not in ("1", "2"):
        raise RequestError(f"{where}: AnswerRightEnding is {answer!r}, not 1 or 2")
    if "/" in cells["InputStoryid"]:
        raise RequestError(f"{where}: InputStoryid holds a slash, which no file name can")
    return Story(
        cells["InputStoryid"],
        " ".join(cells[f"InputSentence{n}"] for n in range(1, 5)),
        *(endings if answer == "1" else endings[::-1]),
    )


def with_other_topics(stories: Sequence[Story], seed: int) -> list[Story]:
    """The stories with the right ending of another one as the wrong ending (tSC).

    Each ending is right once and wrong once. Raises RequestError for a single story.
    """
    if len(stories) < 2:
        raise RequestError("--stories: tSC takes endings of other stories; give two or more")
    order = sorted(stories, key=lambda story: digest(seed, story.id))
    other = dict(zip((s.id for s in order), (*order[1:], order[0]), strict=True))
    return [story._replace(wrong=other[story.id].right) for story in stories]


def digest(*parts: object) -> str:
    """A hash by which things are put in an order that has nothing to do with what they are."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()
