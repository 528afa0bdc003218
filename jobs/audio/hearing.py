"""What one recording turns out to be when it is heard once from beginning to end.

In: blocks of ``wav_S``, as they are decoded. Out: its length, the digest of its samples, when there
is speech in it and in which language. Memory is bounded however long it is.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import NamedTuple

import numpy as np

from jobs.audio.decode import BLOCK_S, Wave
from jobs.audio.language_id import Identified, LanguageId, Spread, identify
from jobs.audio.voice_activity import Detector, Probabilities, Stretch, speech
from orchestrator.spec.recipe import VoiceActivity

Spans = Sequence[tuple[float, float]]

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
        passed = _Passed(blocks)
        if self.detector is None:
            return Heard(passed.drained(), passed.digest())
        spread = Spread(self.num_windows)
        chooser = _Chooser(self.detector, self.rule.threshold, spans_s, spread)
        stretches = tuple(speech(passed, chooser, self.rule))
        said = None
        if identifies and self.language_id is not None:
            said = identify(spread.windows(), self.language_id, self.languages)
        return Heard(passed.num_samples, passed.digest(), stretches, said)


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


class _Chooser:
    """A detector that offers each block to a spread when it knows how much speech is in it."""

    def __init__(
        self, detector: Detector, threshold: float, spans_s: Spans, spread: Spread
    ) -> None:
        self._detector, self._threshold, self._spread = detector, threshold, spread
        self.frame_s = detector.frame_s
        spans_N2 = np.array(sorted(spans_s), np.float64).reshape(-1, 2)
        self._starts_s = spans_N2[:, 0]
        self._ends_s = np.maximum.accumulate(spans_N2[:, 1])  # they may overlap
        self._waiting: deque[Wave] = deque()
        self._num_speech: Counter[int] = Counter()
        """Frames with speech of the blocks that wait."""
        self._num_frames = self._num_offered = 0

    def probabilities(self, blocks: Iterable[Wave]) -> Iterator[Probabilities]:
        """Those of the detector."""
        for p_T in self._detector.probabilities(self._kept(blocks)):
            self._count(p_T)
            yield p_T
        self._offer(self._num_offered + len(self._waiting))

    def _kept(self, blocks: Iterable[Wave]) -> Iterator[Wave]:
        for wav_S in blocks:
            self._waiting.append(wav_S)
            yield wav_S

    def _count(self, p_T: Probabilities) -> None:
        """Take in the speech of some frames, and offer the blocks before them."""
        middle_T = (self._num_frames + np.arange(len(p_T)) + 0.5) * self.frame_s
        is_speech_T = p_T >= self._threshold
        if len(self._starts_s):
            num_begun_T = np.searchsorted(self._starts_s, middle_T)
            is_speech_T &= (num_begun_T > 0) & (middle_T <= self._ends_s[num_begun_T - 1])
        self._num_speech.update((middle_T[is_speech_T] // BLOCK_S).astype(int).tolist())
        self._num_frames += len(p_T)
        self._offer(int(self._num_frames * self.frame_s // BLOCK_S))

    def _offer(self, end: int) -> None:
        """Let go of the blocks before this one."""
        while self._num_offered < end and self._waiting:
            speech_s = self._num_speech.pop(self._num_offered, 0) * self.frame_s
            self._spread.offer(self._waiting.popleft(), speech_s)
            self._num_offered += 1
