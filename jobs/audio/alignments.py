"""When which phone is said: the files of forced aligners and of corpora that come with phone times.

In: a tree of Praat TextGrids (Montreal Forced Aligner, WebMAUS), TIMIT's ``.PHN``, NIST's ``.ctm``
(Kaldi), and ``.lab`` of HTK or of xwaves (Festival). Out: the phones of a recording in order.
Labels are told apart as they are written, without the stress of ARPAbet's vowels (``AH0``) and
Kaldi's places in a word (``AH_B``).
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import NamedTuple

from praatio import textgrid
from praatio.utilities.errors import PraatioException

from jobs.audio.trees import Leaf, Tree
from orchestrator.errors import DataError
from orchestrator.quantities import SAMPLE_RATE_HZ

SUFFIXES = (".textgrid", ".phn", ".ctm", ".lab")
"""Of files, best first where several have one name: transcripts are ``.lab`` files too."""
_NO_PHONES = frozenset(
    (
        *("", "#", "_", "brth", "breath", "epi", "h#", "lau", "noise", "nsn", "pau"),
        *("sil", "silence", "sp", "spn"),
    )
)
_IN_BRACKETS = re.compile(r"<.*>|\[.*\]|\{.*\}")
_ARPABET_STRESS = re.compile(r"^([A-Z]{2})[0-2]$")
_KALDI_PLACE = re.compile(r"_[BIES]$")
_PHONE_TIER = re.compile(r"(.* - )?(phones?|phonemes?|mau|phn|segments?)", re.IGNORECASE)
_CHANNELS = {"1": 0, "A": 0, "2": 1, "B": 1}
_TIER_SIZE = re.compile(
    r'"IntervalTier"\s+(?:name\s*=\s*)?"(?:[^"]|"")*"\s+'
    r"(?:xmin\s*=\s*)?[-\d.eE+]+\s+(?:xmax\s*=\s*)?[-\d.eE+]+\s+"
    r"(?:intervals:\s*size\s*=\s*)?(\d+)"
)
"""The number of intervals that a tier says it has, in either of Praat's text forms."""
_HTK_UNITS_PER_S = 10_000_000


class Phone(NamedTuple):
    """One phone of a recording, in seconds from the beginning of its file."""

    start_s: float
    end_s: float
    label: str
    """Empty for a pause, and for noises that are no phone."""


Name = tuple[str, ...]
"""The parts of a path without its ending."""


class Alignments:
    """The phones of the recordings that a tree has files for.

    A file is that of the recording whose id ends with its whole path, or whose id, without its
    source, ends that path; the names of a ``.ctm`` count as paths.
    """

    def __init__(self, tree: Tree) -> None:
        """Raises DataError where the tree holds nothing of the kind."""
        self._tree = tree
        leaves = [leaf for leaf in tree.leaves() if _suffix(leaf) in SUFFIXES and not leaf.problem]
        self._of: dict[str, dict[Name, Leaf]] = {}
        for leaf in sorted(leaves, key=lambda leaf: (SUFFIXES.index(_suffix(leaf)), leaf.path)):
            for name in self._names(leaf):
                self._of.setdefault(name[-1], {}).setdefault(name, leaf)
        if not self._of:
            raise DataError(
                "evaluate.unit_quality.alignments: no TextGrid, .PHN, .ctm or .lab file is there; "
                "map its name in the cluster's data to the folder of the aligner's output"
            )

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    @property
    def last_parts(self) -> list[str]:
        """The last parts of all names: only recordings whose ids end so can have phone times."""
        return sorted(self._of)

    def name_of(self, recording: str) -> Name | None:
        """The phone times that are a recording's, by its id; None where there are none.

        Raises DataError where two are as near.
        """
        wanted = PurePosixPath(recording).parts
        names = self._of.get(wanted[-1], {})
        found = [n for n in names if _ends_with(wanted, n) or _ends_with(n, wanted[1:])]
        longest = max(map(len, found), default=0)
        best = [name for name in found if len(name) == longest]
        if len(best) > 1:
            raise DataError(
                f"{recording}: {names[best[0]].path} and {names[best[1]].path} are both its phone "
                "times; remove one, or call their folders as the corpus does"
            )
        return best[0] if best else None

    def phones(self, names: Iterable[Name]) -> dict[Name, list[Phone]]:
        """The phones of each name; every file is read once.

        Raises DataError for files that cannot be understood.
        """
        by_leaf: dict[Leaf, set[Name]] = {}
        for name in names:
            by_leaf.setdefault(self._of[name[-1]][name], set()).add(name)
        found: dict[Name, list[Phone]] = {}
        for leaf, wanted in sorted(by_leaf.items()):
            if _suffix(leaf) == ".ctm":
                some: Mapping[Name, Iterable[Phone]] = ctm(self._lines(leaf), leaf.path, wanted)
            else:
                some = {name: _parse(leaf, self._text(leaf)) for name in wanted}
            found |= {name: in_order(phones, leaf.path) for name, phones in some.items()}
        return found

    def _names(self, leaf: Leaf) -> Iterable[Name]:
        if _suffix(leaf) != ".ctm":
            return [PurePosixPath(leaf.path).with_suffix("").parts]
        lines = (words for _, words in _words(self._lines(leaf)))
        return dict.fromkeys(name for words in lines for name in _names_in_ctm(words))

    def _lines(self, leaf: Leaf) -> Iterator[str]:
        with self._tree.place(leaf).open() as file:
            for number, line in enumerate(file, start=1):
                try:
                    yield str(line, "utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"{leaf.path}:{number}: is no text in utf-8 ({error.reason})"
                    ) from None

    def _text(self, leaf: Leaf) -> str:
        with self._tree.place(leaf).open() as file:
            data = file.read()
        encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        try:
            return str(data, encoding)
        except UnicodeDecodeError as error:
            raise DataError(f"{leaf.path}: is no text in {encoding} ({error.reason})") from None


def _ends_with(path: Name, end: Name) -> bool:
    return bool(end) and path[-len(end) :] == end


def in_order(phones: Iterable[Phone], path: str) -> list[Phone]:
    """Phones by their times. Raises DataError where two are said at once, or one ends before."""
    found = sorted(phones)
    for before, phone in zip([None, *found], found, strict=False):
        if phone.end_s < phone.start_s or (before and phone.start_s < before.end_s - 1e-4):
            raise DataError(
                f"{path}: {phone.label or 'a pause'} from {phone.start_s:g} to {phone.end_s:g} s "
                "overlaps the phone before, or ends before it begins; align the recording again"
            )
    return found


def label_of(written: str) -> str:
    """A phone's label as it is counted; empty for a pause."""
    label = _KALDI_PLACE.sub("", written.strip())
    if label.lower() in _NO_PHONES or _IN_BRACKETS.fullmatch(label.lower()):
        return ""
    return _ARPABET_STRESS.sub(r"\1", label)


def ctm(lines: Iterable[str], path: str, wanted: Collection[Name]) -> dict[Name, list[Phone]]:
    """``recording channel start duration phone`` in each line: the phones of some names.

    A channel of a recording is called as the corpus calls it: ``x#0``.
    """
    found: dict[Name, list[Phone]] = {name: [] for name in wanted}
    for number, words in _words(lines):
        for name in _names_in_ctm(words):
            if name in found:
                try:
                    start_s, duration_s, label = float(words[2]), float(words[3]), words[4]
                except (ValueError, IndexError):
                    expected = "recording channel start duration phone"
                    raise _no_phone(path, number, expected) from None
                found[name].append(Phone(start_s, start_s + duration_s, label_of(label)))
    return found


def _names_in_ctm(words: Sequence[str]) -> Iterator[Name]:
    """What a line of a ``.ctm`` is of: nothing for a comment."""
    if not words[0].startswith(";;"):
        yield PurePosixPath(words[0]).parts
        if len(words) > 1 and words[1] in _CHANNELS:
            yield PurePosixPath(f"{words[0]}#{_CHANNELS[words[1]]}").parts


def phn(text: str, path: str) -> list[Phone]:
    """``start end phone`` in each line, in samples at 16 kHz."""
    return list(_timed(text, path, SAMPLE_RATE_HZ))


def lab(text: str, path: str) -> list[Phone]:
    """HTK's ``start end phone`` in units of 100 ns, or xwaves' ``end colour phone`` in seconds."""
    lines = list(_words(text.splitlines()))
    header = next((n for n, (_, words) in enumerate(lines) if words == ["#"]), None)
    if header is None and not any("." in words[0] for _, words in lines):
        return list(_timed(text, path, _HTK_UNITS_PER_S))
    phones, start_s = list[Phone](), 0.0
    for number, words in lines[0 if header is None else header + 1 :]:
        try:
            end_s, label = float(words[0]), words[2] if len(words) > 2 else ""
        except ValueError:
            raise _no_phone(path, number, "end colour phone") from None
        phones.append(Phone(start_s, end_s, label_of(label)))
        start_s = end_s
    return phones


def praat(text: str, path: str) -> list[Phone]:
    """The intervals of a TextGrid's tier of phones."""
    with tempfile.NamedTemporaryFile("w", suffix=".TextGrid", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        try:
            grid = textgrid.openTextgrid(
                file.name, includeEmptyIntervals=True, reportingMode="error"
            )
        except (PraatioException, ValueError, IndexError, KeyError) as error:
            raise DataError(
                f"{path}: is no TextGrid that can be read ({type(error).__name__}); write it anew"
            ) from None
    tiers = [name for name in grid.tierNames if _PHONE_TIER.fullmatch(name)]
    if len(tiers) != 1:
        there = ", ".join(grid.tierNames) or "none"
        raise DataError(
            f"{path}: {len(tiers) or 'no'} tiers of phones among its tiers ({there}); keep one "
            "that is called phones"
        )
    entries = grid.getTier(tiers[0]).entries
    # praatio takes what is left of a file that was cut short.
    declared = [int(size) for size in _TIER_SIZE.findall(text)]
    tiers_there = [tier for tier in grid.tiers if isinstance(tier, textgrid.IntervalTier)]
    if (found := [len(tier.entries) for tier in tiers_there]) != declared:
        raise DataError(f"{path}: has {found} intervals by tier, not {declared}; write it anew")
    return [Phone(float(e.start), float(e.end), label_of(e.label)) for e in entries]


_READERS = {".textgrid": praat, ".phn": phn, ".lab": lab}


def _parse(leaf: Leaf, text: str) -> list[Phone]:
    return _READERS[_suffix(leaf)](text, leaf.path)


def _timed(text: str, path: str, units_per_s: int) -> Iterator[Phone]:
    for number, words in _words(text.splitlines()):
        try:
            start, end, label = int(words[0]), int(words[1]), words[2] if len(words) > 2 else ""
        except (ValueError, IndexError):
            raise _no_phone(path, number, "start end phone") from None
        yield Phone(start / units_per_s, end / units_per_s, label_of(label))


def _words(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """The words of lines that have some, with their numbers."""
    for number, line in enumerate(lines, start=1):
        if words := line.split():
            yield number, words


def _no_phone(path: str, line: int, expected: str) -> DataError:
    return DataError(f"{path}:{line}: not `{expected}`; correct the line or remove the file")


def _suffix(leaf: Leaf) -> str:
    return PurePosixPath(leaf.path).suffix.lower()
