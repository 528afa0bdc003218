"""Units of recordings that are taken whole, as suites are scored: no windows, filters, quarantine.

In: files, an encoder and codebooks. Out: for each codebook the tokens of each file. What cannot be
read, or is too short for a frame, is an error that names it: a score of a part of a suite is not
that suite's.

Shapes: T frames, L tokens, K clusters, D features.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from jobs.audio.decode import UnreadableAudioError, Wave
from jobs.audio.decoders import Decoders
from jobs.speech.lloyd import nearest
from jobs.speech.speech_encoder import SpeechEncoder, is_finite
from jobs.speech.units import deduplicated
from jobs.speech.utterances import batches
from jobs.unit_shards import Units
from orchestrator.errors import DataError
from orchestrator.parquet import read_parquet

SCHEMA = pa.schema(
    [("id", pa.string()), ("units", pa.list_(pa.uint16())), ("num_samples", pa.int64())]
)
"""Of a table of utterances with their units; samples are at 16 kHz."""


class Spoken(NamedTuple):
    """An utterance of a suite as one codebook has it."""

    id: str
    units_L: Units
    num_samples: int


def table_bytes(utterances: Iterable[Spoken]) -> bytes:
    """A Parquet file of them. Equal arguments give equal bytes."""
    columns = zip(*utterances, strict=True)
    table = pa.table(dict(zip(SCHEMA.names, columns, strict=True)), schema=SCHEMA)
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", version="2.6")
    return buffer.getvalue()


def read_table(data: bytes) -> Iterator[Spoken]:
    """The utterances of such a file."""
    table = read_parquet(data)
    for name, units, num_samples in zip(*(table[name] for name in SCHEMA.names), strict=True):
        yield Spoken(name.as_py(), units.values.to_numpy(), num_samples.as_py())


class WholeFile(NamedTuple):
    """What a file turned out to hold."""

    num_samples: int
    """At 16 kHz."""
    units: tuple[Units, ...]
    """``units_L`` by each codebook, repeated ones dropped where that was asked for."""


class WholeFiles:
    """Makes units of files."""

    def __init__(self, encoder: SpeechEncoder, codebooks: Sequence[Tensor], *, dedup: bool) -> None:
        """``codebooks``: ``centroids_KD`` of each."""
        self._encoder, self._dedup = encoder, dedup
        self._codebooks = [centroids_KD.to(encoder.device) for centroids_KD in codebooks]
        self._decoders = Decoders(1)

    def __call__(self, paths: Sequence[Path]) -> list[WholeFile]:
        """What each file holds. Raises DataError by its name for one that gives no units."""
        found: dict[int, WholeFile] = {}
        for numbers, waves in batches(self._waves(paths), self._encoder.max_padded_samples):
            feats = self._encoder.features(waves)
            for number, wav_S, feats_TD in zip(numbers, waves, feats, strict=True):
                _require_frames(paths[number], feats_TD)
                found[number] = WholeFile(len(wav_S), self._units(feats_TD))
        return [found[number] for number in range(len(paths))]

    def _waves(self, paths: Sequence[Path]) -> Iterator[Wave]:
        for path in paths:
            try:
                yield np.concatenate(list(self._decoders.blocks(path)))
            except UnreadableAudioError as error:
                raise DataError(str(error)) from None

    def _units(self, feats_TD: Tensor) -> tuple[Units, ...]:
        found: list[Units] = []
        for centroids_KD in self._codebooks:
            units_T = nearest(feats_TD, centroids_KD).index_N.cpu().numpy().astype(np.uint16)
            found.append(deduplicated(units_T)[0] if self._dedup else units_T)
        return tuple(found)


def _require_frames(path: Path, feats_TD: Tensor) -> None:
    """Raises DataError."""
    if not len(feats_TD):
        raise DataError(f"{path}: is too short for a frame of the encoder; repair the suite")
    if not is_finite(feats_TD):
        raise DataError(f"{path}: the encoder's features of it hold NaN or infinity; repair it")
