"""What one recording turns out to be when it is heard once from beginning to end.

In: blocks of ``wav_S``, as they are decoded. Out: its length, the digest of its samples, when there
is speech in it and in which language. Memory is bounded however long it is.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from jobs.audio.decode import BLOCK_S, Wave
from jobs.audio.language_id import Identified, LanguageId, Spread, identify
from jobs.audio.voice_activity import Detector, Probabilities, Stretch, speech
from orchestrator.spec.recipe import VoiceActivity

Spans = Sequence[tuple[float, float]]
Times = npt.NDArray[np.floating[Any]]

_DIGEST_DIGITS = 32


class Heard(NamedTuple):
    """One recording."""

    num_samples: int
    """At 16 kHz."""
    digest: str
    """Of its samples, in hexadecimal digits; the same for the same audio."""
    stretches: tuple[Stretch, ...] = ()
    """Of speech; none where nobody listened for it."""
    identified: Identified | None = None
    """None where there is no speech, or the language was not asked for."""


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Hears recordings, one after the other."""

    detector: Detector | None = None
    """None where only lengths and digests are wanted."""
    rule: VoiceActivity = field(default_factory=VoiceActivity)
    language_id: LanguageId | None = None
    num_windows: int = 3
    """How many blocks of a recording are heard for its language, at most."""
    languages: Sequence[str] = ()
    """Those whose probability is asked for."""

    def hear(self, blocks: Iterable[Wave], spans_s: Spans = (), *, identifies: bool) -> Heard:
        """A recording; ``identifies`` asks for its language, by blocks with speech in its spans."""
        (heard,) = self.hear_each(blocks, [spans_s if identifies else None])
        return heard

    def hear_each(self, blocks: Iterable[Wave], asked: Sequence[Spans | None]) -> list[Heard]:
        """The recordings that are stretches of one file, by one pass over it.

        ``asked``: for each, the spans whose language is asked for; None where it is not.
        """
        passed = _Passed(blocks)
        if self.detector is None:
            return [Heard(passed.drained(), passed.digest())] * len(asked)
        model = None if self.language_id is None else _Remembering(self.language_id, self.languages)
        questions = [
            None if spans_s is None or model is None else _Question(spans_s, self.num_windows)
            for spans_s in asked
        ]
        wanted = [question for question in questions if question]
        chooser = _Chooser(self.detector, self.rule.threshold, wanted, model)
        stretches = tuple(speech(passed, chooser, self.rule))
        heard = Heard(passed.num_samples, passed.digest(), stretches)
        return [heard._replace(identified=one.said if one else None) for one in questions]


class _Passed:
    """Blocks on their way: how many samples they have, and their digest."""

    def __init__(self, blocks: Iterable[Wave]) -> None:
        self._blocks, self._sha256 = blocks, sha256()
        self.num_samples = 0

    def __iter__(self) -> Iterator[Wave]:
        for wav_S in self._blocks:
            self.num_samples += len(wav_S)
            self._sha256.update(wav_S.tobytes())
            yield wav_S

    def drained(self) -> int:
        """The number of samples, once all have passed."""
        deque(self, maxlen=0)
        return self.num_samples

    def digest(self) -> str:
        """Of what has passed."""
        return self._sha256.hexdigest()[:_DIGEST_DIGITS]


class _Remembering:
    """A model that hears the same blocks only once, where they are asked for one after the other.

    Short stretches of a file are mostly in the block of the one before.
    """

    def __init__(self, model: LanguageId, languages: Sequence[str]) -> None:
        self._model, self._languages = model, languages
        self._windows: list[Wave] = []
        self._said: Identified | None = None

    def identify(self, windows: list[Wave]) -> Identified | None:
        """What `language_id.identify` says."""
        if list(map(id, windows)) != list(map(id, self._windows)):
            self._windows = windows
            self._said = identify(windows, self._model, self._languages)
        return self._said


class _Question:
    """Which language is spoken in some spans of a file, or in all of it."""

    def __init__(self, spans_s: Spans, num_windows: int) -> None:
        spans_N2 = np.array(sorted(spans_s), np.float64).reshape(-1, 2)
        self._starts_s = spans_N2[:, 0]
        self._ends_s = np.maximum.accumulate(spans_N2[:, 1])  # they may overlap
        self._spread = Spread(num_windows)
        self._num_speech: Counter[int] = Counter()
        """Frames with speech of the blocks that are not offered yet."""
        self.said: Identified | None = None

    @property
    def start_s(self) -> float:
        """From when on it listens."""
        return float(self._starts_s[0]) if len(self._starts_s) else 0.0

    @property
    def end_s(self) -> float:
        """Up to when it does."""
        return float(self._ends_s[-1]) if len(self._ends_s) else math.inf

    def count(self, middle_T: Times, is_speech_T: npt.NDArray[np.bool_]) -> None:
        """Take in the speech of some frames."""
        if len(self._starts_s):
            num_begun_T = np.searchsorted(self._starts_s, middle_T)
            is_within_T = (num_begun_T > 0) & (middle_T <= self._ends_s[num_begun_T - 1])
            is_speech_T = is_speech_T & is_within_T
        self._num_speech.update((middle_T[is_speech_T] // BLOCK_S).astype(int).tolist())

    def offer(self, number: int, wav_S: Wave, frame_s: float) -> None:
        """A block in its turn, of which all speech is counted."""
        if num_frames := self._num_speech.pop(number, 0):
            self._spread.offer(wav_S, num_frames * frame_s)

    def answer(self, model: _Remembering) -> None:
        """Say which language it is, and forget the blocks."""
        self.said = model.identify(self._spread.windows())
        self._spread = Spread(0)


class _Chooser:
    """A detector that offers each block to questions when it knows how much speech is in it.

    A question is answered as soon as its last block has passed: a file may have any number.
    """

    def __init__(
        self,
        detector: Detector,
        threshold: float,
        questions: Iterable[_Question],
        model: _Remembering | None,
    ) -> None:
        self._detector, self._threshold, self._model = detector, threshold, model
        self.frame_s = detector.frame_s
        self._upcoming = deque(sorted(questions, key=lambda one: one.start_s))
        self._open: list[_Question] = []
        """Those whose times have begun."""
        self._waiting: deque[Wave] = deque()
        self._num_frames = self._num_offered = 0

    def probabilities(self, blocks: Iterable[Wave]) -> Iterator[Probabilities]:
        """Those of the detector."""
        for p_T in self._detector.probabilities(self._kept(blocks)):
            self._count(p_T)
            yield p_T
        self._offer(self._num_offered + len(self._waiting))
        self._answer(math.inf)

    def _kept(self, blocks: Iterable[Wave]) -> Iterator[Wave]:
        for wav_S in blocks:
            self._waiting.append(wav_S)
            yield wav_S

    def _count(self, p_T: Probabilities) -> None:
        """Take in the speech of some frames, and offer the blocks before them."""
        middle_T = (self._num_frames + np.arange(len(p_T)) + 0.5) * self.frame_s
        self._num_frames += len(p_T)
        while self._upcoming and self._upcoming[0].start_s <= self._num_frames * self.frame_s:
            self._open.append(self._upcoming.popleft())
        for question in self._open:
            question.count(middle_T, p_T >= self._threshold)
        self._offer(int(self._num_frames * self.frame_s // BLOCK_S))

    def _offer(self, end: int) -> None:
        """Let go of the blocks before this one."""
        while self._num_offered < end and self._waiting:
            wav_S = self._waiting.popleft()
            for question in self._open:
                question.offer(self._num_offered, wav_S, self.frame_s)
            self._num_offered += 1
            self._answer(self._num_offered * BLOCK_S)

    def _answer(self, passed_s: float) -> None:
        """Answer the questions about times that have passed."""
        for question in (one for one in self._open if one.end_s <= passed_s):
            assert self._model, "nobody asks where no model is"
            question.answer(self._model)
        self._open = [one for one in self._open if one.end_s > passed_s]
