"""The unit_quality stage: what the units tell of phones, where the times of phones are known.

In: the corpus, the encoder and the codebook, and files of phone times of some recordings. Out:
``quality.json``: PNMI, purities and ABX of the units and, beside them, of as many clusters of MFCC
of the same audio, which units that are worth their cost beat; how many units are used; how much of
the features' variance the codebook leaves. Nothing has to be tokenized for it.
"""

from __future__ import annotations

import hashlib
import logging
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from jobs.attempt import Attempt, run_stage
from jobs.audio.alignments import Alignments, Name, Phone
from jobs.audio.corpus_tables import CorpusTables, Part, Row
from jobs.audio.roots import Root
from jobs.scoring.abx import Abx, Triphone, abx
from jobs.scoring.unit_quality import labels_at, quality
from jobs.speech.feature_blocks import in_order
from jobs.speech.grid import Grid, grid_of
from jobs.speech.judged import Judged, JudgeWorker, Spread
from jobs.speech.lloyd import MIN_FRAMES_PER_CLUSTER, BlocksInMemory, fit, nearest
from jobs.speech.pool import stage_pool
from jobs.speech.targets import scaled, scaling_of
from jobs.speech.units import EncoderSpec, view_of
from jobs.speech.utterances import read_corpus, source_roots
from jobs.unit_shards import Units
from orchestrator.errors import DataError
from orchestrator.ledger.storage import to_json
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.recipe import UnitQuality, Windows

log = logging.getLogger(__name__)

RULE = (
    "frames whose centre is in a phone, pauses left out; ABX of triphones, units as one-hot, DTW; "
    "MFCC with first and second differences, standardised, fitted on the same audio"
)
_MAX_UNUSED, _MAX_UNEXPLAINED = 0.1, 0.9
_MIN_FRAMES_PER_UNIT = 100
"""Fewer say more of chance than of units: of 500 that mean nothing, PNMI is 0.27 with 20."""
_TASK_S, _MAX_TRIPHONE_S = 120.0, 1.0


def work(attempt: Attempt) -> dict[str, Any]:
    """Judge the units; returns the figures."""
    settings = attempt.recipe.evaluate.unit_quality
    assert settings is not None, "only a recipe that asks for it has this node"
    torch.set_num_threads(1)  # k-means of MFCC runs here: one fixed thread count, one rounding
    tables, windows = read_corpus(attempt), attempt.recipe.corpus.windows
    alignments = Alignments(Root(*attempt.data_source(settings.alignments)).tree())
    chosen = choose(tables, windows, alignments, settings)
    num_clusters = attempt.upstream["codebook"].facts["num_clusters"]
    require_enough(chosen, attempt.recipe.encoder.frame_rate_hz, num_clusters)
    rows = {row.number: row for row in tables.at([c.row for c in chosen])}
    names = {c.row: c.name for c in chosen}
    phones = alignments.phones(names.values())
    heard, spread, grid = _heard(attempt, parts_of(chosen, rows, windows))
    marked = [Marked.of(judged, phones[names[judged.row]], grid) for judged in heard]
    speakers = {number: row.speaker for number, row in rows.items()}
    clusters = mfcc_units(heard, num_clusters, settings.seed)
    figures = {
        "units": _figures(marked, [judged.units_T for judged in heard], speakers),
        "mfcc": _figures(marked, clusters, speakers),
        "codebook": _use([judged.units_T for judged in heard], num_clusters, spread),
    }
    silent = {m.row for m in marked} - {m.row for m in marked if any(m.labels_T)}
    doubts = [*doubts_of(**figures), *_doubts_of_times([rows[n].id for n in sorted(silent)])]
    for doubt in doubts:
        log.warning("%s", doubt)
    audio_s = sum(judged.num_samples for judged in heard) / SAMPLE_RATE_HZ
    about = {"num_recordings": len({j.row for j in heard}), "audio_s": audio_s}
    attempt.out.replace(
        "quality.json", to_json({"rule": RULE, **about, **figures, "doubts": doubts})
    )
    return {**about, **figures, "doubts": doubts}


def doubts_of(
    units: Mapping[str, Any], mfcc: Mapping[str, Any], codebook: Mapping[str, Any]
) -> list[str]:
    """What speaks against training on these units, and what to try; nothing where they are good."""
    doubts, num_units = [], codebook["num_units"]
    if is_little := codebook["num_frames"] < _MIN_FRAMES_PER_UNIT * num_units:
        doubts.append(
            f"{codebook['num_frames']:,} frames are few for {num_units} units, so that PNMI is too "
            "high for any: give phone times of more audio, and raise hours"
        )
    if units["pnmi"] <= mfcc["pnmi"]:
        doubts.append(
            f"the units tell no more of the phones than clusters of MFCC do (PNMI {units['pnmi']} "
            f"and {mfcc['pnmi']}): try another encoder.layer, an encoder of this language, or "
            "pretrain it longer and on more speech"
        )
    for name in ("abx_within", "abx_across"):
        own, its = units[name], mfcc[name]
        if own is not None and its is not None and own > its:
            doubts.append(
                f"{name.replace('_', ' ')} speakers is worse than that of MFCC ({own} and {its}): "
                "sounds that differ in one phone share units; try another encoder.layer"
            )
    if not is_little and codebook["num_unused"] > _MAX_UNUSED * num_units:
        doubts.append(
            f"{codebook['num_unused']} of {num_units} units are in none of this audio: lower "
            "tokenizer.num_clusters, or raise tokenizer.fit_hours"
        )
    if codebook["unexplained_variance"] > _MAX_UNEXPLAINED:
        doubts.append(
            f"the codebook leaves {codebook['unexplained_variance']:.0%} of the features' variance:"
            " the layer has no clusters, or the codebook is another layer's; try another "
            "encoder.layer"
        )
    return doubts


def _doubts_of_times(silent: Sequence[str]) -> list[str]:
    """``silent``: recordings of which no frame has a phone."""
    return [
        f"{len(silent)} recordings have phone times, and no phone where they are heard, such as "
        f"{name}: times count from the beginning of the file, also those of a stretch of it"
        for name in silent[:1]
    ]


class Chosen(NamedTuple):
    """A recording, or the first windows of it, whose phones are known."""

    row: int
    name: Name
    """Of its phone times."""
    num_windows: int
    """That are expected; 0 for all that there are."""
    samples: int


def choose(
    tables: CorpusTables, windows: Windows, alignments: Alignments, settings: UnitQuality
) -> list[Chosen]:
    """Recordings whose phones are known, by the hashes of their ids, up to so many hours.

    Raises DataError when there is none, and when phone times could be those of two.
    """
    last_parts, first = pa.array(alignments.last_parts), 0
    known: list[tuple[bytes, Chosen]] = []
    owners: dict[Name, str] = {}
    for piece, expected in tables.expected(windows):
        last = pc.replace_substring_regex(piece["id"], "^.*/", "")
        for at in np.flatnonzero(pc.is_in(last, last_parts)).tolist():
            recording = piece["id"][at].as_py()
            name = alignments.name_of(recording)
            if name is None:
                continue
            if (owner := owners.setdefault(name, recording)) != recording:
                raise DataError(
                    f"{'/'.join(name)}: these phone times could be those of {owner} and of "
                    f"{recording}; put them into folders that are called as the recordings'"
                )
            rank = hashlib.sha256(f"{settings.seed}:{recording}".encode()).digest()
            sizes = (int(expected.num_windows[at]), int(expected.samples[at]))
            known.append((rank, Chosen(first + at, name, *sizes)))
        first += piece.num_rows
    if not known:
        raise DataError(
            f"evaluate.unit_quality.alignments: none of its {len(alignments):,} phone times is "
            f"called as one of the corpus' {tables.num_rows:,} recordings; give files the paths "
            "of the recordings, with another ending"
        )
    return sorted(_up_to([chosen for _, chosen in sorted(known)], settings.hours))


def _up_to(known: Iterable[Chosen], hours: float) -> Iterator[Chosen]:
    """The first of so many hours; the last one in part, where it would be more."""
    left = hours * 3600 * SAMPLE_RATE_HZ
    for chosen in known:
        if left <= 0:
            return
        if chosen.samples > left:
            share = math.ceil(chosen.num_windows * left / chosen.samples)
            yield chosen._replace(num_windows=share, samples=math.ceil(left))
        else:
            yield chosen._replace(num_windows=0)
        left -= chosen.samples


def require_enough(chosen: Iterable[Chosen], frame_rate_hz: float, num_clusters: int) -> None:
    """Raises DataError where there are too few frames to fit clusters of MFCC on."""
    audio_s = sum(c.samples for c in chosen) / SAMPLE_RATE_HZ
    if audio_s * frame_rate_hz < 2 * MIN_FRAMES_PER_CLUSTER * num_clusters:
        raise DataError(
            f"evaluate.unit_quality: phone times of {audio_s:.0f} s of audio are too few to judge "
            f"{num_clusters} units by; give some of more, an hour or two"
        )


def parts_of(
    chosen: Iterable[Chosen], rows: Mapping[int, Row], windows: Windows
) -> Iterator[list[Part]]:
    """Tasks of about two minutes: a part of a long recording, or several short ones."""
    at_once = max(1, int(_TASK_S / windows.max_s))
    parts, filled_s = list[Part](), 0.0
    for one in chosen:
        row, left = rows[one.row], one.num_windows
        seconds = one.samples / SAMPLE_RATE_HZ
        num_windows = left or max(1, math.ceil(seconds / windows.max_s))
        for first in range(0, num_windows, at_once):
            end = min(first + at_once, num_windows)
            # All that there are, where all were chosen: headers need not say how many.
            parts.append(Part(row, first, None if end == num_windows and not left else end))
            filled_s += min(seconds, (end - first) * windows.max_s)
            if filled_s >= _TASK_S:
                yield parts
                parts, filled_s = [], 0.0
    if parts:
        yield parts


class Marked(NamedTuple):
    """A window with the phones of its frames."""

    row: int
    labels_T: list[str]
    triphones: list[tuple[str, str, str, slice]]
    """The phones before, in question and after, and the frames of all three."""

    @classmethod
    def of(cls, judged: Judged, phones: Sequence[Phone], grid: Grid) -> Marked:
        """``phones``: of the whole recording."""
        num_frames, start = len(judged.units_T), judged.start_sample
        labels_T = labels_at(phones, grid, num_frames, start_sample=start)
        return cls(judged.row, labels_T, list(_triphones(phones, grid, num_frames, start)))


def _triphones(
    phones: Sequence[Phone], grid: Grid, num_frames: int, start_sample: int
) -> Iterator[tuple[str, str, str, slice]]:
    """Those of up to a second that lie in the window as a whole."""

    def frame(second: float) -> int:
        """The first whose centre is not before."""
        from_start = second * SAMPLE_RATE_HZ - start_sample - grid.field / 2
        return int(np.ceil(from_start / grid.hop))

    for before, phone, after in zip(phones, phones[1:], phones[2:], strict=False):
        joined = max(phone.start_s - before.end_s, after.start_s - phone.end_s) < 1e-3
        first, end = frame(before.start_s), frame(after.end_s)
        is_short = after.end_s - before.start_s <= _MAX_TRIPHONE_S
        is_spoken = joined and is_short and before.label and phone.label and after.label
        if is_spoken and 0 <= first < end <= num_frames:
            yield before.label, phone.label, after.label, slice(first, end)


def _heard(attempt: Attempt, parts: Iterable[list[Part]]) -> tuple[list[Judged], Spread, Grid]:
    """What the pool makes of the recordings. Raises DataError when nothing can be heard."""
    recipe = attempt.recipe
    url = attempt.upstream["encoder"].storage.url
    encoder = EncoderSpec.up_to([view_of(recipe.encoder)], url, recipe.encoder.precision)
    tasks = list(parts)
    codebook_url = attempt.upstream["codebook"].storage.url
    where = (source_roots(attempt), recipe.corpus.windows, codebook_url)
    heard: list[Judged] = []
    spreads = []
    with stage_pool(attempt, JudgeWorker, encoder, *where) as pool:
        results = in_order(pool.run(range(len(tasks)), tasks.__getitem__, tick=attempt.check))
        for done, (judged, spread) in enumerate(results, start=1):
            heard += judged
            spreads.append(spread)
            attempt.progress(done, len(tasks), "tasks")
    total = sum(spreads[1:], start=spreads[0])
    if not total.num_frames:
        raise DataError("evaluate.unit_quality: nothing can be heard in the aligned recordings")
    config = attempt.upstream["encoder"].storage.read_json("config.json")
    return heard, total, grid_of(config["conv_kernel"], config["conv_stride"])


def mfcc_units(heard: Sequence[Judged], num_clusters: int, seed: int) -> list[Units]:
    """The clusters of MFCC, as many as units, for each window."""
    blocks = [torch.from_numpy(judged.mfcc_TD) for judged in heard]
    scaling = scaling_of(torch.cat(blocks), standardise=True)
    blocks = [scaled(mfcc_TD, scaling) for mfcc_TD in blocks]
    centroids_KD = fit(BlocksInMemory(blocks), num_clusters, seed).centroids
    return [nearest(mfcc_TD, centroids_KD).index_N.numpy() for mfcc_TD in blocks]


def _figures(
    marked: Sequence[Marked], units: Sequence[Units], speakers: dict[int, str]
) -> dict[str, Any]:
    labels = [label for window in marked for label in window.labels_T]
    measured = quality(labels, np.concatenate(units))
    errors = abx(_spoken(marked, units, speakers))
    return {**_rounded(measured._asdict()), **_named(errors)}


def _spoken(
    marked: Iterable[Marked], units: Iterable[Units], speakers: dict[int, str]
) -> Iterator[Triphone]:
    for window, units_T in zip(marked, units, strict=True):
        for before, phone, after, frames in window.triphones:
            yield Triphone((before, after), phone, speakers[window.row], units_T[frames])


def _named(errors: Abx) -> dict[str, Any]:
    rates = {"abx_within": errors.within, "abx_across": errors.across}
    return {**_rounded(rates), "num_triphones": errors.num_triphones}


def _use(units: Sequence[Units], num_clusters: int, spread: Spread) -> dict[str, Any]:
    """How the units are used."""
    share_K = np.bincount(np.concatenate(units), minlength=num_clusters) / spread.num_frames
    there = share_K[share_K > 0]
    return {
        "num_frames": spread.num_frames,
        "num_units": num_clusters,
        "num_unused": num_clusters - len(there),
        **_rounded(
            {
                "perplexity": float(np.exp(-(there * np.log(there)).sum())),
                "unexplained_variance": spread.unexplained,
            }
        ),
    }


def _rounded(figures: dict[str, float | None]) -> dict[str, float | None]:
    return {name: None if x is None else round(x, 4) for name, x in figures.items()}


if __name__ == "__main__":
    sys.exit(run_stage("unit_quality", work))
