"""Turns features into units, and units into shards.

In: ``feats_TD`` of an utterance and ``centroids_KD`` of a codebook. Out: one Parquet shard per
codebook with the same bytes wherever and however often it is made.

Shapes: N frames of several utterances, T frames, D features, K clusters, L tokens.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load, save
from torch import Tensor

from jobs.audio.corpus_tables import ShardRows
from jobs.audio.decode import Wave
from jobs.audio.roots import Root
from jobs.device import own_device
from jobs.speech.account import Account
from jobs.speech.lloyd import Fit, nearest
from jobs.speech.reading_ahead import ReadersAhead, num_readers
from jobs.speech.speech_encoder import Precision, SpeechEncoder, is_finite
from jobs.speech.transformer import Output, View
from jobs.speech.utterances import ShardAudio, Utterance, batches
from jobs.unit_shards import SCHEMA, Units, read_shard, shard_path, used
from orchestrator.errors import AlreadyExistsError, CorruptError
from orchestrator.ledger.storage import Storage
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.recipe import Encoder, Recipe, Windows

_NO_UNITS: Units = np.zeros(0, np.uint16)
_NO_NUMBERS = "the encoder's features of it hold NaN or infinity"
CODEBOOK, CODEBOOK_FACTS = "codebook.safetensors", "codebook.json"


def deduplicated(units_T: Units) -> tuple[Units, Units]:
    """Runs of one unit as one token: units and their durations in frames.

    Raises OverflowError for a run of more than 65,535 frames.
    """
    starts = np.flatnonzero(np.diff(units_T.astype(np.int32), prepend=-1))
    durations = np.diff(np.append(starts, len(units_T)))
    if durations.size and durations.max() > np.iinfo(np.uint16).max:
        raise OverflowError(f"a run of {durations.max()} frames does not fit a uint16")
    return units_T[starts], durations.astype(np.uint16)


def shard_bytes(audio: ShardAudio, units: Mapping[int, Units], *, dedup: bool) -> bytes:
    """The Parquet file of one shard; ``units`` by the number of the wave.

    Equal arguments give equal bytes.
    """
    rows, numbers = [], count()
    for utterance, left_out in audio.heard:
        units_T = _NO_UNITS if left_out else units[next(numbers)]
        if utterance.row.id not in audio.unreadable:
            units_L, durations_L = _tokens(units_T, dedup=dedup)
            about = {"units": units_L, "durations": durations_L, "left_out": left_out or None}
            rows.append({**_facts_of(utterance), **about})
    for part in audio.parts:
        if reason := audio.unreadable.get(part.row.id):
            nothing = Utterance(part.row.id, part.row, 0, 0)
            about = {"units": _NO_UNITS, "durations": _NO_UNITS, "unreadable": reason}
            rows.append({**_facts_of(nothing), **about})
    # In the order of the corpus: the first and the last recording may go on in another shard.
    rows.sort(key=lambda row: row["number"])
    columns = {name: [row.get(name) for row in rows] for name in SCHEMA.names}
    buffer = io.BytesIO()
    table = pa.table(columns, schema=SCHEMA)
    pq.write_table(table, buffer, compression="zstd", version="2.6", row_group_size=1 << 20)
    return buffer.getvalue()


def _tokens(units_T: Units, *, dedup: bool) -> tuple[Units, Units]:
    return deduplicated(units_T) if dedup else (units_T, np.ones_like(units_T))


def _facts_of(utterance: Utterance) -> dict[str, Any]:
    row = utterance.row
    return {
        "number": row.number,
        "id": utterance.id,
        "recording": row.id,
        "start_sample": utterance.start_sample,
        "num_samples": utterance.num_samples,
        "source": row.source,
        "language": row.language,
        "speaker": row.speaker,
        "session": row.session,
    }


@dataclass(frozen=True)
class ShardStats:
    """What is used of one shard, or of several together."""

    num_utterances: int
    num_samples: int
    unit_counts: npt.NDArray[np.int64]
    """K: how often each unit occurs."""

    @classmethod
    def of(cls, table: pa.Table, num_clusters: int) -> ShardStats:
        """Counted from the rows of a shard."""
        table = used(table)
        units = table["units"].combine_chunks().flatten().to_numpy()
        return cls(
            num_utterances=table.num_rows,
            num_samples=int(table["num_samples"].to_numpy().sum()),
            unit_counts=np.bincount(units, minlength=num_clusters),
        )

    def __add__(self, other: ShardStats) -> ShardStats:
        """Both together."""
        return ShardStats(
            num_utterances=self.num_utterances + other.num_utterances,
            num_samples=self.num_samples + other.num_samples,
            unit_counts=self.unit_counts + other.unit_counts,
        )

    @property
    def num_tokens(self) -> int:
        """Tokens, after deduplication where that was asked for."""
        return int(self.unit_counts.sum())

    @property
    def entropy_bits(self) -> float:
        """Entropy of the unigram distribution of units."""
        share_K = self.unit_counts[self.unit_counts > 0] / max(self.num_tokens, 1)
        return float(-(share_K * np.log2(share_K)).sum()) + 0.0  # no -0.0 in facts

    @property
    def audio_s(self) -> float:
        """Seconds of audio."""
        return self.num_samples / SAMPLE_RATE_HZ


def write_codebook(out: Storage, fit: Fit, **more: Tensor) -> dict[str, Any]:
    """Create ``codebook.safetensors`` and, after it, ``codebook.json``; the content of the latter.

    What a killed attempt left is completed: the same fit gives the same bytes.
    """
    data = save({"centroids": fit.centroids.contiguous(), **more})
    num_clusters, dim = fit.centroids.shape
    about = {
        "num_clusters": num_clusters,
        "dim": dim,
        "sha256": hashlib.sha256(data).hexdigest(),
        "inertia": fit.inertia,
        "iterations": fit.iterations,
    }
    create_same(out, CODEBOOK, data)
    create_same(out, CODEBOOK_FACTS, (json.dumps(about, indent=1, sort_keys=True) + "\n").encode())
    return about


def read_codebook(codebook: Storage) -> dict[str, Tensor]:
    """The ``centroids``, KxD, and whatever else `write_codebook` was given.

    Raises CorruptError when the digest is another.
    """
    data, about = codebook.read_bytes(CODEBOOK), codebook.read_json(CODEBOOK_FACTS)
    if hashlib.sha256(data).hexdigest() != about["sha256"]:
        raise CorruptError(
            f"{codebook.url}/{CODEBOOK}: bytes differ from codebook.json's sha256; fit it again"
        )
    tensors: dict[str, Tensor] = load(data)
    return tensors


def create_same(out: Storage, path: str, data: bytes) -> None:
    """Create the object, or find the same bytes there. Raises CorruptError when they differ."""
    try:
        out.create(path, data)
    except AlreadyExistsError:
        if out.read_bytes(path) != data:
            raise CorruptError(
                f"{out.url}/{path}: another attempt wrote other bytes under the same key; "
                "compare the package versions, device kinds and cpus_per_worker of the attempts"
            ) from None


@dataclass(frozen=True, kw_only=True)
class EncoderSpec:
    """What a worker needs to build the encoder."""

    url: str
    """Folder of the encoder's artifact."""
    layer: int | None
    """HF ``hidden_states`` index; the model's last where None."""
    output: Output = "after_residual"
    """What is taken of it."""
    precision: Precision = "fp32"
    """Arithmetic."""

    @classmethod
    def up_to(cls, views: Sequence[View], url: str, precision: Precision = "fp32") -> EncoderSpec:
        """One that has all these views, and no layer above them."""
        layer, output = max(views, key=lambda view: view.layer)
        return cls(url=url, layer=layer, output=output, precision=precision)

    def load(self, device: torch.device | None = None) -> SpeechEncoder:
        """The encoder, on this process's device where none is given."""
        storage = Storage(self.url)
        with tempfile.TemporaryDirectory() as folder:
            names = ("config.json", "model.safetensors", "encoder.json")
            paths = [storage.fetch(n, Path(folder)) for n in names if storage.exists(n)]
            here = device or own_device()
            return SpeechEncoder.load(
                paths[0].parent,
                self.layer,
                output=self.output,
                device=here,
                precision=self.precision,
                on_cpu=None if here.type == "cpu" else lambda: self.load(torch.device("cpu")),
            )


def view_of(encoder: Encoder) -> View:
    """What a recipe takes of its encoder."""
    return View(encoder.layer, encoder.output)


def name_of(recipe: Recipe) -> str:
    """What tells its codebook apart from others of one pass."""
    view = view_of(recipe.encoder)
    return f"{recipe.tokenizer.num_clusters} clusters of layer {view.layer} {view.output}"


@dataclass(frozen=True, kw_only=True)
class WantedUnits:
    """Units of one codebook."""

    view: View
    """Of which features."""
    codebook_url: str
    out_url: str
    """Where they go."""


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One shard to be tokenized."""

    shard: int
    """Its number."""
    rows: ShardRows
    """Its recordings, or what it has of them."""
    missing: Sequence[int]
    """Positions of the units whose shard is wanted and not there yet."""


@dataclass(frozen=True, kw_only=True)
class ShardResult:
    """What a shard turned out to hold."""

    shard: int
    accounts: Mapping[int, Account]
    stats: Mapping[int, ShardStats]
    """Both by position of the units."""
    decoded_samples: int = 0
    """That were decoded for it: windows at its edges are met twice."""
    passed_over_samples: int = 0
    """Of these, to get into files that have no other way."""
    num_ties: int = 0
    """Frames, of all codebooks, that rounding could have given to another unit."""


class Tokenizer:
    """The tokenize stage's worker: one pass of the encoder over a shard serves all codebooks."""

    def __init__(
        self,
        encoder: EncoderSpec,
        roots: Mapping[str, Root],
        windows: Windows,
        wanted: Sequence[WantedUnits],
        dedup: bool,
    ) -> None:
        """``encoder``: of the highest layer that is wanted."""
        self._encoder = encoder.load()
        self._readers = ReadersAhead(roots, num_readers(self._encoder.device))
        self._windows = windows
        self._dedup = dedup
        self._views = [one.view for one in wanted]
        self._outs = [Storage(one.out_url) for one in wanted]
        self._codebooks = [
            read_codebook(Storage(one.codebook_url))["centroids"].to(self._encoder.device)
            for one in wanted
        ]

    def __call__(self, task: ShardTask) -> ShardResult:
        """Write the shard of all units that miss it."""
        if not task.missing:
            return ShardResult(shard=task.shard, accounts={}, stats={})
        audio, readers = ShardAudio(task.rows.parts(), self._windows), self._readers
        decoded, passed_over = readers.decoded_samples, readers.passed_over_samples
        with readers.ahead(audio.parts, self._windows) as source:
            found = self._units(audio.waves(source), task.missing)
        accounts, stats = {}, {}
        for which, units in found.items():
            own = audio.without(units.no_numbers, _NO_NUMBERS)
            data = shard_bytes(own, units.by_wave, dedup=self._dedup)
            create_same(self._outs[which], shard_path(task.shard), data)
            table = read_shard(data)
            accounts[which] = Account.of(table)
            stats[which] = ShardStats.of(table, len(self._codebooks[which]))
        return ShardResult(
            shard=task.shard,
            accounts=accounts,
            stats=stats,
            decoded_samples=readers.decoded_samples - decoded,
            passed_over_samples=readers.passed_over_samples - passed_over,
            num_ties=sum(units.num_ties for units in found.values()),
        )

    def _units(self, waves: Iterator[Wave], missing: Sequence[int]) -> dict[int, _Found]:
        """By position of the units."""
        found = {which: _Found() for which in missing}
        views = list(dict.fromkeys(self._views[which] for which in missing))
        for numbers, batch in batches(waves, self._encoder.max_padded_samples):
            feats = self._encoder.features_of(batch, views)
            seen = {view: _Frames.of(numbers, feats[view]) for view in views}
            for which, units in found.items():
                units.add(seen[self._views[which]], self._codebooks[which])
        return found


class _Frames(NamedTuple):
    """A batch as all codebooks of one view have it."""

    numbers: Sequence[int]
    """Of its waves."""
    feats_ND: Tensor
    """Of all of them, one after the other."""
    ends: npt.NDArray[np.int64]
    """Of each wave's frames."""
    no_numbers: list[int]
    """Waves that have none."""

    @classmethod
    def of(cls, numbers: Sequence[int], feats: Sequence[Tensor]) -> _Frames:
        """From ``feats_TD`` of each wave."""
        waves = zip(numbers, feats, strict=True)
        no_numbers = [number for number, feats_TD in waves if not is_finite(feats_TD)]
        ends = np.cumsum([len(feats_TD) for feats_TD in feats])
        return cls(numbers, torch.cat(list(feats)), ends, no_numbers)


@dataclass
class _Found:
    """Units of one codebook while a shard is heard."""

    by_wave: dict[int, Units] = field(default_factory=dict)
    """By number of the wave."""
    no_numbers: list[int] = field(default_factory=list)
    """Waves that have none."""
    num_ties: int = 0

    def add(self, seen: _Frames, centroids_KD: Tensor) -> None:
        """Those of a batch."""
        self.no_numbers += seen.no_numbers
        nearest_N = nearest(seen.feats_ND, centroids_KD)
        self.num_ties += int(nearest_N.is_tie_N.sum())
        units_N = nearest_N.index_N.cpu().numpy().astype(np.uint16)
        parts = np.split(units_N, seen.ends[:-1])
        self.by_wave.update(zip(seen.numbers, parts, strict=True))
