"""Windows of a shard's recordings, decoded by several readers ahead of who wants them.

An accelerator hears faster than one core decodes. In: the parts of a shard, in the order in which
their windows will be asked for. Out: what one `WaveReader` gives for each of them. A file is
decoded by one reader, as its parts share a pass over it; readers take files in turn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import groupby
from threading import Condition

import torch

from jobs.audio.corpus_tables import Part
from jobs.audio.decode import UnreadableAudioError, blocks
from jobs.audio.decoders import Decode, Decoders
from jobs.audio.roots import Root
from jobs.speech.utterances import WaveReader, Window, WindowSource
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.recipe import Windows

MOST_SAMPLES = 600 * SAMPLE_RATE_HZ
"""That a reader holds ahead: 38 MB."""


def num_readers(device: torch.device) -> int:
    """As many as the worker has cores, which nothing else needs where an accelerator computes."""
    return 1 if device.type == "cpu" else torch.get_num_threads()


class ReadersAhead:
    """Readers that live across several shards."""

    def __init__(
        self,
        roots: Mapping[str, Root],
        count: int,
        *,
        most_samples: int = MOST_SAMPLES,
        decode: Decode = blocks,
    ) -> None:
        # One lot for all, so that what fails beside the others is tried again alone.
        decoders = Decoders(count, decode=decode)
        self._readers = [WaveReader(roots, decoders) for _ in range(count)]
        self._most_samples = most_samples

    @property
    def decoded_samples(self) -> int:
        """See `WaveReader`."""
        return sum(reader.decoded_samples for reader in self._readers)

    @property
    def passed_over_samples(self) -> int:
        """See `WaveReader`."""
        return sum(reader.passed_over_samples for reader in self._readers)

    def close(self) -> None:
        """End all decoding."""
        for reader in self._readers:
            reader.close()

    @contextmanager
    def ahead(self, parts: Sequence[Part], of: Windows) -> Iterator[WindowSource]:
        """A source of the windows of the parts, each asked for once and in order."""
        if len(self._readers) == 1:
            yield self._readers[0]
            return
        lanes = [_Lane(reader, self._most_samples) for reader in self._readers]
        in_turn: deque[_Lane] = deque()
        for number, (_, same) in enumerate(groupby(parts, lambda p: (p.row.source, p.row.leaf))):
            lane = lanes[number % len(lanes)]
            own = list(same)
            lane.parts += own
            in_turn += [lane] * len(own)
        with ThreadPoolExecutor(len(lanes), thread_name_prefix="read-ahead") as threads:
            try:
                for lane in lanes:
                    threads.submit(lane.fill, of)
                yield _InTurn(in_turn)
            finally:
                for lane in lanes:
                    lane.close()


class _InTurn:
    """Windows of one part after the other, from the lanes that have them."""

    def __init__(self, lanes: deque[_Lane]) -> None:
        self._lanes = lanes

    def windows(self, _part: Part, _of: Windows, /) -> Iterator[Window]:
        """See `WaveReader`."""
        return self._lanes.popleft().taken()


class _ClosedError(Exception):
    """Nobody wants the rest."""


class _Lane:
    """What one reader has decoded and nobody has taken yet."""

    def __init__(self, reader: WaveReader, most_samples: int) -> None:
        self.parts: list[Part] = []
        self._reader, self._most_samples = reader, most_samples
        self._ready: deque[Window | Exception | None] = deque()
        """None ends a part; so does an error."""
        self._num_samples = 0
        self._is_closed = False
        self._changed = Condition()

    def fill(self, of: Windows) -> None:
        """Decode all parts, but for when there is enough ahead."""
        try:
            for part in self.parts:
                try:
                    self._put_all(part, of)
                    self._put(None)
                except UnreadableAudioError as error:
                    self._put(error)
        except _ClosedError:
            return
        except Exception as error:  # noqa: BLE001 (whoever takes it raises it)
            self._put(error)

    def taken(self) -> Iterator[Window]:
        """The windows of the next part. Raises what its reader did."""
        while (ready := self._take()) is not None:
            if isinstance(ready, Exception):
                raise ready
            yield ready

    def close(self) -> None:
        """Let `fill` end, and whoever waits for what it would have given."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _put_all(self, part: Part, of: Windows) -> None:
        with closing(self._reader.windows(part, of)) as windows:
            for window in windows:
                self._put(window)

    def _put(self, ready: Window | Exception | None) -> None:
        with self._changed:
            self._changed.wait_for(self._has_room)
            if self._is_closed:
                raise _ClosedError
            self._ready.append(ready)
            self._num_samples += _samples_of(ready)
            self._changed.notify_all()

    def _has_room(self) -> bool:
        return self._is_closed or self._num_samples < self._most_samples

    def _take(self) -> Window | Exception | None:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._ready) or self._is_closed)
            if self._is_closed:
                raise _ClosedError
            ready = self._ready.popleft()
            self._num_samples -= _samples_of(ready)
            self._changed.notify_all()
        return ready


def _samples_of(ready: Window | Exception | None) -> int:
    return len(ready.wav_S) if isinstance(ready, Window) else 0
