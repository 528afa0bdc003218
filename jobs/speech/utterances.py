"""Utterances of a corpus and their waves, cut while recordings are decoded.

In: rows of a corpus artifact and the roots of its sources on this node. Out: utterances with their
``wav_S``, S samples at 16 kHz, and batches of them for the encoder. Memory is bounded by some
utterances, however long a recording is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from jobs.attempt import Attempt
from jobs.audio import places, windows
from jobs.audio.activity import is_silent
from jobs.audio.corpus_tables import CorpusTables, Part, Row
from jobs.audio.decode import BLOCK_S, UnreadableAudioError, Wave
from jobs.audio.decoders import Decoders
from jobs.audio.roots import Root
from jobs.audio.trees import Leaf
from jobs.enough_audio import require_enough
from jobs.speech.grid import plan_batches
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.recipe import Windows

Item = TypeVar("Item")

PAGE_SAMPLES = 240 * SAMPLE_RATE_HZ
"""Audio decoded ahead and planned into batches: a constant, since batches decide rounding."""
SILENT = "silent"
_LIKE_A_WINDOW = re.compile(r"@\d+$")
"""A recording that is called as a window of another would be."""
_BLOCK_SAMPLES = BLOCK_S * SAMPLE_RATE_HZ


class Utterance(NamedTuple):
    """A stretch of a recording, in samples at 16 kHz."""

    id: str
    row: Row
    """The recording."""
    start_sample: int
    num_samples: int


def source_roots(attempt: Attempt) -> dict[str, Root]:
    """Where each source of the attempt's corpus lies here."""
    return {
        source.name: Root(
            *attempt.data_source(source.name),
            lowpass_hz=source.lowpass_hz,
            # What has several channels then, though its header says one, is mixed.
            channels="mix" if source.channels == "each" else source.channels,
        )
        for source in attempt.recipe.corpus.sources
    }


def read_corpus(attempt: Attempt) -> CorpusTables:
    """The tables of the corpus that a stage reads.

    Raises DataError when they are too few for a variant that needs the stage: an earlier run may
    have made the corpus for another split.
    """
    artifact = attempt.upstream["corpus"].storage
    folder = places.ensured(artifact, attempt.recipe.corpus, source_roots(attempt))
    tables = CorpusTables(artifact, folder)
    samples = tables.samples_by_recording(attempt.recipe.corpus.windows)
    require_enough(attempt.all_recipes, samples, attempt.scope)
    return tables


class _Pass:
    """One pass over a recording, from somewhere on; holds what is between two marks of it."""

    def __init__(
        self, blocks: Generator[Wave], first_block: int, passed_over: Sequence[int] = ()
    ) -> None:
        """``passed_over``: gets the number of blocks before the first that were decoded as well."""
        self._blocks, self._passed_over = blocks, passed_over
        self._held: Wave = np.zeros(0, np.float32)
        self._start = first_block * _BLOCK_SAMPLES
        self.is_over = False
        """Whether the recording ends with what is held."""
        self.decoded_samples = 0
        self._error: UnreadableAudioError | None = None
        """What ended it: whoever needs more of the recording is to hear of it as well."""

    def close(self) -> None:
        """End its decoding, of which nobody wants more."""
        self._blocks.close()

    @property
    def passed_over_samples(self) -> int:
        """What was decoded to get to where it begins, as nobody can enter the file there."""
        return sum(self._passed_over) * _BLOCK_SAMPLES

    @property
    def start(self) -> int:
        """Which sample of the recording is the first held."""
        return self._start

    @property
    def end(self) -> int:
        """Which would be the next one."""
        return self._start + len(self._held)

    def go_to(self, start: int, end: int) -> None:
        """Hold what is between two samples, or what there is of it."""
        self._drop_before(start)
        while self.end < end and not self.is_over:
            block = self._next_block()
            self.is_over = block is None
            if block is not None:
                self.decoded_samples += len(block)
                self._held = np.concatenate([self._held, block])
                self._drop_before(start)

    def wave(self, start: int, end: int) -> Wave:
        """A copy of what is held between two samples."""
        return self._held[start - self._start : end - self._start].copy()

    def _next_block(self) -> Wave | None:
        if self._error:
            raise self._error
        try:
            return next(self._blocks, None)
        except UnreadableAudioError as error:
            self._error = error
            raise

    def _drop_before(self, start: int) -> None:
        passed = min(max(start - self._start, 0), len(self._held))
        self._held, self._start = self._held[passed:], self._start + passed


class Window(NamedTuple):
    """An utterance as it was decoded."""

    utterance: Utterance
    wav_S: Wave
    is_whole: bool
    """Whether it is a whole stretch of its recording."""

    def left_out(self, of: Windows) -> str:
        """Why it is not used; empty when it is."""
        if self.is_whole and len(self.wav_S) < of.min_s * SAMPLE_RATE_HZ:
            return f"shorter than {of.min_s} s"
        return SILENT if is_silent(self.wav_S) else ""


class WindowSource(Protocol):
    """Whoever decodes recordings."""

    def windows(self, part: Part, of: Windows, /) -> Iterator[Window]:
        """The windows of a part of a recording, as it turns out to be."""


class WaveReader:
    """Reads utterances; neighbours in a recording are taken from one pass over it."""

    def __init__(self, roots: Mapping[str, Root], decoders: Decoders | None = None) -> None:
        """``decoders``: those of readers beside it, with a process for each; its own by default."""
        self._roots, self._decoders = roots, decoders or Decoders(1)
        self._of: tuple[str, Leaf, int | None] | None = None
        """Source, file and channel of the pass; several recordings may be stretches of one."""
        self._decoded_before = self._passed_over_before = 0
        self._pass = _Pass(_nothing(), 0)

    @property
    def decoded_samples(self) -> int:
        """Of all passes, what they only went by included."""
        return self._decoded_before + self._pass.decoded_samples + self.passed_over_samples

    @property
    def passed_over_samples(self) -> int:
        """Of these, those of files that cannot be entered, up to where they were wanted."""
        return self._passed_over_before + self._pass.passed_over_samples

    def close(self) -> None:
        """End its pass and the decoding processes that nobody uses; it can read on all the same."""
        self._end_pass()
        self._decoders.close()

    def read(self, utterance: Utterance) -> Wave:
        """``wav_S`` of an utterance.

        Raises UnreadableAudioError when its file is broken or shorter than it was, BackendError
        when it cannot be read.
        """
        start, end = utterance.start_sample, utterance.start_sample + utterance.num_samples
        over = self._at(utterance.row, start)
        over.go_to(start, end)
        if over.end < end:
            place = self._roots[utterance.row.source].place(utterance.row.leaf)
            raise UnreadableAudioError(place, f"ends before sample {end}, which it had earlier")
        return over.wave(start, end)

    def windows(self, part: Part, of: Windows) -> Generator[Window]:
        """The windows of a part of a recording, as it turns out to be.

        Raises what `read` does.
        """
        row, stretches, most = part.row, part.row.stretches(of), windows.max_samples(of)
        is_alone = len(stretches) == 1
        for to_read in windows.to_be_read(stretches, part.first, part.end, row.header_samples, of):
            number, start = to_read.number, to_read.start
            over = self._at(row, start)
            while part.end is None or number < part.end:
                end = start + 2 * most + 1
                end = end if to_read.end is None else min(end, to_read.end)
                over.go_to(start, end)
                left = min(over.end, end) - start
                if left <= 0:
                    break
                length = windows.next_window(left, most)
                is_whole = length == left and start == to_read.start and not to_read.skipped
                if number >= part.first:
                    is_bare = is_alone and is_whole and not _LIKE_A_WINDOW.search(row.id)
                    name = row.id if is_bare else f"{row.id}@{start}"
                    utterance = Utterance(name, row, start, length)
                    yield Window(utterance, over.wave(start, start + length), is_whole)
                number, start = number + 1, start + length

    def _at(self, row: Row, start: int) -> _Pass:
        """A pass that has not gone by ``start``: the last one, where no other is there sooner."""
        of = (row.source, row.leaf, row.channel)
        if of != self._of or not self._is_ahead(start):
            self._end_pass()
            self._of, self._pass = of, self._begun(row, start // _BLOCK_SAMPLES)
        return self._pass

    def _end_pass(self) -> None:
        self._pass.close()
        self._decoded_before += self._pass.decoded_samples
        self._passed_over_before += self._pass.passed_over_samples
        self._of, self._pass = None, _Pass(_nothing(), 0)

    def _is_ahead(self, start: int) -> bool:
        is_next = start // _BLOCK_SAMPLES <= self._pass.end // _BLOCK_SAMPLES
        # Another would have to go through the file from its beginning.
        return self._pass.start <= start and (is_next or self._pass.passed_over_samples > 0)

    def _begun(self, row: Row, first: int) -> _Pass:
        """A pass from a block on."""
        passed_over: list[int] = []
        blocks = self._roots[row.source].blocks(
            self._decoders,
            row.leaf,
            channel=row.channel,
            first=first,
            on_passed_over=passed_over.append,
        )
        return _Pass(blocks, first, passed_over)


def _nothing() -> Generator[Wave]:
    yield from ()


class Heard(NamedTuple):
    """A window of a shard, and why it is not used, where it is not."""

    utterance: Utterance
    left_out: str = ""


@dataclass
class ShardAudio:
    """What the parts of a shard turn out to hold while they are decoded."""

    parts: Sequence[Part]
    windows: Windows
    heard: list[Heard] = field(default_factory=list)
    """All windows, in order."""
    unreadable: dict[str, str] = field(default_factory=dict)
    """Recordings that cannot be decoded to their end, and why; none of their windows is used."""

    def waves(self, reader: WindowSource) -> Iterator[Wave]:
        """The waves of all windows that may be used."""
        for part in self.parts:
            num_before = len(self.heard)
            try:
                yield from self._waves_of(part, reader)
            except UnreadableAudioError as error:
                self.unreadable[part.row.id] = error.reason
                continue
            if part.first == 0 and len(self.heard) == num_before:
                nothing = Utterance(part.row.id, part.row, 0, 0)
                self.heard.append(Heard(nothing, "ends before the speech that its corpus lists"))

    def without(self, waves: Sequence[int], reason: str) -> ShardAudio:
        """The same with nothing made of the recordings of some waves, by their numbers."""
        used = [utterance.row.id for utterance, left_out in self.heard if not left_out]
        unreadable = self.unreadable | {used[wave]: reason for wave in waves}
        return replace(self, unreadable=unreadable)

    def _waves_of(self, part: Part, reader: WindowSource) -> Iterator[Wave]:
        for window in reader.windows(part, self.windows):
            reason = window.left_out(self.windows)
            self.heard.append(Heard(window.utterance, reason))
            if not reason:
                yield window.wav_S


def pages(
    items: Iterable[Item], num_samples: Callable[[Item], int], max_samples: int = PAGE_SAMPLES
) -> Iterator[list[Item]]:
    """Consecutive runs of items, at most ``max_samples`` together; a longer one is alone."""
    page: list[Item] = []
    filled = 0
    for item in items:
        size = num_samples(item)
        if page and filled + size > max_samples:
            yield page
            page, filled = [], 0
        page.append(item)
        filled += size
    if page:
        yield page


def batches(
    waves: Iterable[Wave], max_padded_samples: int
) -> Iterator[tuple[list[int], list[Wave]]]:
    """Batches for the encoder: which waves they are of all, and those.

    A pure function of the waves' lengths. The next page is decoded in a thread while the caller
    computes.
    """
    first, upcoming = 0, pages(waves, len)
    with ThreadPoolExecutor(1, thread_name_prefix="decode") as thread:
        decoding = thread.submit(next, upcoming, None)
        while page := decoding.result():
            decoding = thread.submit(next, upcoming, None)
            for batch in plan_batches([len(w) for w in page], max_padded_samples):
                yield [first + i for i in batch], [page[i] for i in batch]
            first += len(page)
