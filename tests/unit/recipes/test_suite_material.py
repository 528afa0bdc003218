from __future__ import annotations

import csv
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from jobs.scoring.suites import open_suite
from jobs.scoring.suites.scores import score_suite
from orchestrator.errors import BackendError, ExitCode, RequestError
from recipes.suite_material import (
    MARKER,
    STORIES,
    Settings,
    make_cloze,
    make_sblimp,
    make_swuggy,
    mark,
    mnemonics,
    opaque,
    prepare,
    synthesiser,
    voices_of,
)
from recipes.suite_texts import Word, choose_words, read_stories
from tests.unit.recipes.test_suite_texts import lexicon

needs_espeak = pytest.mark.skipif(not shutil.which("espeak-ng"), reason="needs espeak-ng")
SETTINGS = Settings(
    words=3,
    sentences=2,
    stories=STORIES,
    synthesiser="espeak-ng",
    voices=("en-us", "en-gb"),
    seed=0,
)
BEEP = (
    f'{sys.executable} -I -S -c \'import sys, wave; out = wave.open(sys.argv[1], "wb"); '
    'out.setparams((1, 2, 16000, 0, "NONE", "")); '
    'out.writeframes(b"0." * (800 + 8 * len(sys.stdin.read()))); out.close()\' {wav}'
)
"""A synthesiser of the user's: as long a tone as the text has letters."""


def words() -> list[Word]:
    return choose_words(lexicon(), SETTINGS.words, SETTINGS.seed)


def digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@needs_espeak
def test_words_are_in_the_official_layout_and_the_same_bytes_twice(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_swuggy(tmp_path / name / "swuggy-like", words(), SETTINGS)
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    suite = open_suite("swuggy", tmp_path / "one/swuggy-like")
    assert (len(suite.pairs), len(suite.items("dev"))) == (6, 3)
    assert {pair.voice for pair in suite.pairs} == {"en-us", "en-gb"}
    header = soundfile.info(tmp_path / "one/swuggy-like" / suite.files[suite.pairs[0].positive])
    assert (header.samplerate, header.channels, header.subtype) == (16_000, 1, "PCM_16")
    assert header.duration > 0.2


@needs_espeak
def test_a_word_and_its_non_word_do_not_sound_the_same(tmp_path: Path) -> None:
    make_swuggy(tmp_path, words(), SETTINGS)
    suite = open_suite("swuggy", tmp_path)
    for pair in suite.pairs:
        word, non_word = (tmp_path / suite.files[id_] for id_ in (pair.positive, pair.negative))
        assert word.read_bytes() != non_word.read_bytes()


def test_sentences_are_in_the_official_layout(tmp_path: Path) -> None:
    make_sblimp(tmp_path / "sblimp-like", SETTINGS, synthesiser(BEEP))
    suite = open_suite("sblimp", tmp_path / "sblimp-like")
    log_probs = dict.fromkeys(suite.files, -1.0)
    document = score_suite(suite, log_probs, bootstrap_samples=100, seed=0)
    figures = document["splits"]["dev"]["figures"]
    assert [f["num_pairs"] for f in figures] == [8, 8, 2, 2, 2, 2]
    with (tmp_path / "sblimp-like/syntactic/dev/gold.csv").open(newline="") as gold:
        rows = [(r["correct"], r["id"], r["voice"]) for r in csv.DictReader(gold)]
    good, bad = ([row[1:] for row in rows if row[0] == which] for which in "10")
    assert good == bad, "the official scorer pairs by the order of rows"
    note = (tmp_path / "sblimp-like/NOT_THE_PUBLISHED_SUITE.txt").read_text()
    assert note.startswith("sblimp-like: made by")


@pytest.mark.parametrize("voices", [("a",), ("a", "b")])
def test_stories_are_in_the_published_layout(tmp_path: Path, voices: tuple[str, ...]) -> None:
    stories = read_stories(STORIES)[:3]
    make_cloze(tmp_path, "sSC", stories, voices, synthesiser(BEEP))
    suite = open_suite("ssc", tmp_path)
    assert list(suite.items("all")) == sorted(story.id for story in stories)
    assert len(suite.pairs) == 3 * len(voices)
    lengths = {
        pair.item: soundfile.info(tmp_path / suite.files[pair.positive]).frames
        for pair in suite.pairs
    }
    letters = {story.id: len(f"{story.context} {story.right}") for story in stories}
    assert lengths == {id_: 800 + 8 * number for id_, number in letters.items()}


def test_suites_that_are_there_are_not_made_again(tmp_path: Path) -> None:
    settings = SETTINGS._replace(synthesiser="a command that names no file")
    (tmp_path / MARKER).write_text(mark(settings))
    for kind in ("swuggy", "sblimp", "ssc", "tsc"):
        (tmp_path / f"{kind}-like").mkdir()
        (tmp_path / f"{kind}-like/NOT_THE_PUBLISHED_SUITE.txt").touch()
    assert prepare(tmp_path, settings)["tsc"] == tmp_path / "tsc-like"
    with pytest.raises(RequestError, match="write where"):  # is looked at to make them
        prepare(tmp_path, settings._replace(seed=1))
    shutil.rmtree(tmp_path / "tsc-like")
    with pytest.raises(RequestError, match="write where"):
        prepare(tmp_path, settings)


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "sblimp-like").mkdir()
    (tmp_path / "sblimp-like/mine.txt").write_text("keep")
    with pytest.raises(RequestError, match="sblimp-like was not made by this and would be"):
        prepare(tmp_path, SETTINGS)
    assert (tmp_path / "sblimp-like/mine.txt").read_text() == "keep"


def test_each_synthesiser_has_voices_of_its_own() -> None:
    assert voices_of("festival") == "kal_diphone,ked_diphone"
    assert voices_of("espeak-ng") == voices_of("piper {wav}") == "en-us,en-gb"


def test_a_file_in_the_place_of_the_folder_takes_one_line(tmp_path: Path) -> None:
    (tmp_path / "to").touch()
    words = ["-m", "recipes.suite_material", "--to", str(tmp_path / "to"), "--synthesiser", BEEP]
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.UNREACHABLE
    assert done.stderr.startswith("error: --to: ")
    assert done.stderr.count("\n") == 1


def test_quotes_that_are_not_closed_are_named() -> None:
    with pytest.raises(RequestError, match="No closing quotation; close its quotes"):
        synthesiser("say 'a {wav}")


def test_stories_that_are_not_there_take_one_line(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no\.csv: cannot be read"):
        prepare(tmp_path / "to", SETTINGS._replace(stories=tmp_path / "no.csv"))
    assert not (tmp_path / "to").exists()


def test_phones_are_spelt_for_the_synthesiser_with_their_stress() -> None:
    assert mnemonics(("AH0", "B", "AW1", "T", "ER0", "CH", "ER2")) == "@|b|'aU|t|3|tS|,3:"


def test_file_names_tell_nothing() -> None:
    names = {opaque(0, "word", n) for n in range(100)}
    assert len(names) == 100
    assert all(len(name) == 16 and name.isalpha() for name in names)


def test_a_command_that_names_no_file_is_refused() -> None:
    with pytest.raises(RequestError, match=r"names no {wav}; write where"):
        synthesiser("say something")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("no-such-program {wav}", "^no-such-program: not on this machine; install it"),
        ("false {wav}", "^false: cannot say 'a text' in voice x"),
        ("true {wav}", "^true: cannot say 'a text' in voice x"),
    ],
)
def test_a_synthesiser_that_does_not_speak_is_named(
    tmp_path: Path, command: str, message: str
) -> None:
    with pytest.raises(BackendError, match=message):
        synthesiser(command)("a text", "x", tmp_path / "a.wav")
