"""When which phone is said: the files of forced aligners and of corpora that come with phone times.

In: a tree of Praat TextGrids (Montreal Forced Aligner, WebMAUS), TIMIT's ``.PHN``, NIST's ``.ctm``
(Kaldi), and ``.lab`` of HTK or of xwaves (Festival). Out: the phones of a recording in order.
Labels are told apart as they are written, without the stress of ARPAbet's vowels (``AH0``) and
Kaldi's places in a word (``AH_B``).
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import PurePosixPath
from typing import NamedTuple

from praatio import textgrid
from praatio.utilities.errors import PraatioException

from jobs.audio.trees import Leaf, Tree
from orchestrator.errors import DataError
from orchestrator.quantities import SAMPLE_RATE_HZ

SUFFIXES = frozenset((".textgrid", ".phn", ".ctm", ".lab"))
_PAUSES = frozenset(("", "#", "<p:>", "<p>", "<eps>", "epi", "h#", "noise", "pau"))
_PAUSE = re.compile(r"<?(sil|sp|spn|silence)>?")
_ARPABET_STRESS = re.compile(r"^([A-Z]{2})[0-2]$")
_KALDI_PLACE = re.compile(r"_[BIES]$")
_PHONE_TIER = re.compile(r"(.* - )?(phones?|phonemes?|mau|phn|segments?)", re.IGNORECASE)
_TIER_SIZE = re.compile(
    r'"IntervalTier"\s+(?:name\s*=\s*)?"(?:[^"]|"")*"\s+'
    r"(?:xmin\s*=\s*)?[-\d.eE+]+\s+(?:xmax\s*=\s*)?[-\d.eE+]+\s+"
    r"(?:intervals:\s*size\s*=\s*)?(\d+)"
)
"""The number of intervals that a tier says it has, in either of Praat's text forms."""
_HTK_UNITS_PER_S = 10_000_000


class Phone(NamedTuple):
    """One phone of a recording, in seconds from its beginning."""

    start_s: float
    end_s: float
    label: str
    """Empty for a pause, and for noises that are no phone."""


class Alignments:
    """The phones of the recordings that a tree has files for."""

    def __init__(self, tree: Tree) -> None:
        """Raises DataError where the tree holds nothing of the kind."""
        self._tree = tree
        leaves = [leaf for leaf in tree.leaves() if _suffix(leaf) in SUFFIXES and not leaf.problem]
        self._of: dict[str, list[tuple[tuple[str, ...], Leaf]]] = {}
        for leaf in sorted(leaves):
            names = _in_ctm(self._text(leaf)) if _suffix(leaf) == ".ctm" else [_stem(leaf.path)]
            for name in names:
                parts = PurePosixPath(name).parts
                self._of.setdefault(parts[-1], []).append((parts, leaf))
        if not self._of:
            raise DataError(
                "evaluate.unit_quality.alignments: no TextGrid, .PHN, .ctm or .lab file is there; "
                "map its name in the cluster's data to the folder of the aligner's output"
            )
        self._ctm = lru_cache(maxsize=2)(self._read_ctm)

    def __len__(self) -> int:
        return sum(map(len, self._of.values()))

    def has(self, recording: str) -> bool:
        """Whether there is a file, or a part of one, called as the recording."""
        return recording.rpartition("/")[2] in self._of

    def phones(self, recording: str) -> list[Phone]:
        """Those of a recording, by its id; `has` says whether there are any.

        Of several files of its name that is meant whose folders are called most alike. Raises
        DataError for two that are as near, and for files that cannot be understood.
        """
        wanted = PurePosixPath(recording).parts
        found = [(_alike(parts, wanted), parts, leaf) for parts, leaf in self._of[wanted[-1]]]
        nearest = max(alike for alike, _, _ in found)
        best = [(parts, leaf) for alike, parts, leaf in found if alike == nearest]
        if len(best) > 1:
            raise DataError(
                f"{recording}: {best[0][1].path} and {best[1][1].path} are both its phone times; "
                "remove one, or call their folders as the corpus does"
            )
        ((parts, leaf),) = best
        if _suffix(leaf) == ".ctm":
            return in_order(self._ctm(leaf)["/".join(parts)], leaf.path)
        return in_order(_parse(leaf, self._text(leaf)), leaf.path)

    def _read_ctm(self, leaf: Leaf) -> Mapping[str, list[Phone]]:
        return ctm(self._text(leaf), leaf.path)

    def _text(self, leaf: Leaf) -> str:
        with self._tree.place(leaf).open() as file:
            data = file.read()
        encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        try:
            return str(data, encoding)
        except UnicodeDecodeError as error:
            raise DataError(f"{leaf.path}: is no text in {encoding} ({error.reason})") from None


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
    if label.lower() in _PAUSES or _PAUSE.fullmatch(label.lower()):
        return ""
    return _ARPABET_STRESS.sub(r"\1", label)


def ctm(text: str, path: str) -> dict[str, list[Phone]]:
    """``recording channel start duration phone`` in each line, by recording."""
    found: dict[str, list[Phone]] = {}
    for number, words in _lines(text):
        try:
            recording, _, start, duration, label = words[:5]
            phone = Phone(float(start), float(start) + float(duration), label_of(label))
        except ValueError:
            raise _no_phone(path, number, "recording channel start duration phone") from None
        found.setdefault(recording, []).append(phone)
    return found


def phn(text: str, path: str) -> list[Phone]:
    """``start end phone`` in each line, in samples at 16 kHz."""
    return list(_timed(text, path, SAMPLE_RATE_HZ))


def lab(text: str, path: str) -> list[Phone]:
    """HTK's ``start end phone`` in units of 100 ns, or xwaves' ``end colour phone`` in seconds."""
    first = next((words for _, words in _lines(text)), [])
    if "#" not in text.split() and "." not in "".join(first[:1]):
        return list(_timed(text, path, _HTK_UNITS_PER_S))
    phones, start_s, in_header = list[Phone](), 0.0, "#" in text.split()
    for number, words in _lines(text):
        if in_header:
            in_header = words != ["#"]
            continue
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
    for number, words in _lines(text):
        try:
            start, end, label = int(words[0]), int(words[1]), words[2] if len(words) > 2 else ""
        except (ValueError, IndexError):
            raise _no_phone(path, number, "start end phone") from None
        yield Phone(start / units_per_s, end / units_per_s, label_of(label))


def _lines(text: str) -> Iterator[tuple[int, list[str]]]:
    """The words of lines that have some, with their numbers."""
    for number, line in enumerate(text.splitlines(), start=1):
        if words := line.split():
            yield number, words


def _in_ctm(text: str) -> list[str]:
    return list(dict.fromkeys(words[0] for _, words in _lines(text)))


def _no_phone(path: str, line: int, expected: str) -> DataError:
    return DataError(f"{path}:{line}: not `{expected}`; correct the line or remove the file")


def _suffix(leaf: Leaf) -> str:
    return PurePosixPath(leaf.path).suffix.lower()


def _stem(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))


def _alike(parts: tuple[str, ...], wanted: tuple[str, ...]) -> int:
    """How many parts of two paths are the same, from their ends on."""
    pairs = zip(reversed(parts), reversed(wanted), strict=False)
    return next(
        (n for n, (one, other) in enumerate(pairs) if one != other), min(len(parts), len(wanted))
    )
