from __future__ import annotations

from collections import Counter
from itertools import product
from pathlib import Path

import pytest

from orchestrator.errors import RequestError
from recipes.suite_material import STORIES
from recipes.suite_texts import (
    Lexicon,
    Phones,
    bare,
    choose_words,
    read_dictionary,
    read_stories,
    sentences,
    with_other_topics,
)

DICTIONARY = """\
# a comment
past P AE1 S T
past(2) P AA1 S T
kist K IH1 S T # rare
"""


def dictionary() -> dict[str, list[Phones]]:
    """Words of two syllables each, of a language with few."""
    syllables = [
        (onset, vowel, coda)
        for onset, vowel, coda in product("KPMTS", ("AE1", "IH1", "OW1", "EY1"), "NTSK")
    ]
    again = (*reversed(syllables), *syllables[:7])
    pairs = zip((*syllables, *syllables[:7]), again, strict=True)
    return {f"{n:03d}": [(*one, *other)] for n, (one, other) in enumerate(pairs)}


def lexicon() -> Lexicon:
    return Lexicon(dictionary(), dictionary())


def test_a_dictionary_has_several_pronunciations_and_comments() -> None:
    found = read_dictionary(DICTIONARY)
    assert found["past"] == [("P", "AE1", "S", "T"), ("P", "AA1", "S", "T")]
    assert found["kist"] == [("K", "IH1", "S", "T")]


def test_a_non_word_differs_in_one_phone_of_its_kind_and_is_no_word() -> None:
    words = choose_words(lexicon(), 3, seed=0)
    known = {bare(phones) for all_of in dictionary().values() for phones in all_of}
    for word in words:
        assert bare(word.non_word) not in known
        (n,) = (i for i, p in enumerate(word.phones) if p != word.non_word[i])
        assert word.phones[n][-1:].isdigit() == word.non_word[n][-1:].isdigit()
    assert len({word.non_word for word in words}) == 3


def test_its_trigrams_are_those_of_words() -> None:
    """M EY S T is no word here, though every three of its phones are in one."""
    small = read_dictionary("mast M AE1 S T\nmay M EY1\nmace M EY1 S\npaste P EY1 S T\n")
    assert Lexicon(small, small).non_word_of(("M", "AE1", "S", "T")) == (*("M", "EY1", "S", "T"),)
    assert Lexicon(small, ["mast"]).non_word_of(("M", "AE1", "S", "T")) is None


def test_counting_phones_does_not_tell_words_from_non_words() -> None:
    """Of any length of sequences, words are ahead in as many pairs as non-words, but for two."""
    made = lexicon()
    words = choose_words(made, 20, seed=3)
    for order in range(3):
        ahead = [
            made.commonness(bare(w.phones))[order] - made.commonness(bare(w.non_word))[order]
            for w in words
        ]
        assert abs(sum(a > 0 for a in ahead) - sum(a < 0 for a in ahead)) <= 2


def test_too_many_words_are_refused() -> None:
    with pytest.raises(RequestError, match=r"^--words: \d+ can be made; ask for no more"):
        choose_words(lexicon(), 1000, seed=0)


def test_each_word_of_a_sentence_is_right_as_often_as_wrong() -> None:
    made = sentences(24, seed=1)
    assert Counter(s.kind for s in made) == dict.fromkeys(
        (
            *("determiner_noun_agreement", "subject_verb_agreement"),
            *("anaphor_number_agreement", "anaphor_gender_agreement"),
        ),
        24,
    )
    good = Counter(word for sentence in made for word in sentence.good.split())
    bad = Counter(word for sentence in made for word in sentence.bad.split())
    assert good == bad
    for sentence in made:
        pairs = zip(sentence.good.split(), sentence.bad.split(), strict=True)
        assert sum(a != b for a, b in pairs) == 1


def test_a_seed_chooses_the_sentences() -> None:
    assert sentences(6, seed=1) == sentences(6, seed=1)
    assert sentences(6, seed=1) != sentences(6, seed=2)
    with pytest.raises(RequestError, match=r"^--sentences: \d+ of .* can be made"):
        sentences(10_000, seed=0)


HEADER = (
    "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,"
    "RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding\n"
)


def stories_in(folder: Path, *rows: str, header: str = HEADER) -> Path:
    file = folder / "stories.csv"
    file.write_text(header + "".join(f"{row}\n" for row in rows))
    return file


def test_the_answer_says_which_ending_is_right(tmp_path: Path) -> None:
    file = stories_in(tmp_path, "x,A.,B.,C.,D.,E.,F.,1", "y,A.,B.,C.,D.,E.,F.,2")
    x, y = read_stories(file)
    assert (x.context, x.right, x.wrong) == ("A. B. C. D.", "E.", "F.")
    assert (y.right, y.wrong) == ("F.", "E.")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x,A.,B.,C.,D.,E.,F.,3", "row 2: AnswerRightEnding is '3', not 1 or 2"),
        ("x,A.,B.,,D.,E.,F.,1", "row 2: InputSentence3 is empty"),
        ("x/y,A.,B.,C.,D.,E.,F.,1", "row 2: InputStoryid holds a slash"),
        ("x,A.,B.,C.,D.,E.,F.,1\nx,A.,B.,C.,D.,E.,F.,1", "an InputStoryid stands twice"),
    ],
)
def test_a_damaged_story_is_named(tmp_path: Path, row: str, message: str) -> None:
    with pytest.raises(RequestError, match=f"stories.csv: {message}"):
        read_stories(stories_in(tmp_path, row))


def test_a_file_of_other_columns_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"has no column InputStoryid, .* as published"):
        read_stories(stories_in(tmp_path, header="a,b\n"))


def test_each_ending_is_right_once_and_wrong_once() -> None:
    stories = read_stories(STORIES)
    other = with_other_topics(stories, seed=0)
    assert len(other) == 32
    assert sorted(s.wrong for s in other) == sorted(s.right for s in stories)
    assert all(s.wrong != s.right for s in other)
