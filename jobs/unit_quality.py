"""The unit_quality stage: what the units tell of phones, where the times of phones are known.

In: the corpus, the encoder and the codebook, and files of phone times of some recordings. Out:
``quality.json``: PNMI, purities and ABX of the units and, beside them, of as many clusters of MFCC
of the same audio, which units that are worth their cost beat; how many units are used; how much of
the features' variance the codebook leaves. Nothing has to be tokenized for it.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from jobs.attempt import Attempt, run_stage
from jobs.audio.alignments import Alignments, Phone
from jobs.audio.corpus_tables import CorpusTables, Part, Row
from jobs.audio.roots import Root
from jobs.scoring.abx import Abx, Triphone, abx
from jobs.scoring.unit_quality import labels_at, quality
from jobs.speech.feature_blocks import in_order
from jobs.speech.grid import Grid, grid_of
from jobs.speech.judged import Judged, JudgeWorker, Spread
from jobs.speech.lloyd import BlocksInMemory, fit, nearest
from jobs.speech.pool import stage_pool
from jobs.speech.targets import scaled, scaling_of
from jobs.speech.units import EncoderSpec
from jobs.speech.utterances import pages, read_corpus, source_roots
from jobs.unit_shards import Units
from orchestrator.errors import DataError
from orchestrator.ledger.storage import to_json
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.recipe import UnitQuality

log = logging.getLogger(__name__)

RULE = (
    "frames whose centre is in a phone, pauses left out; ABX of triphones, units as one-hot, DTW; "
    "MFCC with first and second differences, standardised, fitted on the same audio"
)
_MAX_UNUSED, _MAX_UNEXPLAINED = 0.1, 0.9
_TASK_SAMPLES = 120 * SAMPLE_RATE_HZ


def work(attempt: Attempt) -> dict[str, Any]:
    """Judge the units; returns the figures."""
    settings = attempt.recipe.evaluate.unit_quality
    assert settings is not None, "only a recipe that asks for it has this node"
    torch.set_num_threads(1)  # k-means of MFCC runs here: one fixed thread count, one rounding
    alignments = Alignments(Root(*attempt.data_source(settings.alignments)).tree())
    chosen = choose(read_corpus(attempt), alignments, settings)
    phones = {row.number: alignments.phones(row.id) for row in chosen}
    heard, spread, grid = _heard(attempt, chosen)
    marked = [Marked.of(judged, phones[judged.row], grid) for judged in heard]
    num_clusters = attempt.upstream["codebook"].facts["num_clusters"]
    speakers = {row.number: row.speaker for row in chosen}
    clusters = mfcc_units(heard, num_clusters, settings.seed)
    figures = {
        "units": _figures(marked, [judged.units_T for judged in heard], speakers),
        "mfcc": _figures(marked, clusters, speakers),
        "codebook": _use([judged.units_T for judged in heard], num_clusters, spread),
    }
    doubts = doubts_of(**figures)
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
    doubts = []
    if units["pnmi"] <= mfcc["pnmi"]:
        doubts.append(
            f"the units tell no more of the phones than clusters of MFCC do (PNMI {units['pnmi']} "
            f"and {mfcc['pnmi']}): try another encoder.layer, an encoder of this language, or "
            "pretrain it longer and on more speech"
        )
    abx_pairs = [(name, units[name], mfcc[name]) for name in ("abx_within", "abx_across")]
    for name, own, its in abx_pairs:
        if own is not None and its is not None and own >= its:
            doubts.append(
                f"{name.replace('_', ' ')} speakers is no better than that of MFCC ({own} and "
                f"{its}): sounds that differ in one phone share units; try another encoder.layer"
            )
    if codebook["num_unused"] > _MAX_UNUSED * codebook["num_units"]:
        doubts.append(
            f"{codebook['num_unused']} of {codebook['num_units']} units are in none of this audio: "
            "lower tokenizer.num_clusters, or raise tokenizer.fit_hours"
        )
    if codebook["unexplained_variance"] > _MAX_UNEXPLAINED:
        doubts.append(
            f"the codebook leaves {codebook['unexplained_variance']:.0%} of the features' variance:"
            " the layer has no clusters, or the codebook is another layer's; try another "
            "encoder.layer"
        )
    return doubts


def choose(tables: CorpusTables, alignments: Alignments, settings: UnitQuality) -> list[Row]:
    """Recordings whose phones are known, by the hashes of their ids, up to so many hours.

    Raises DataError when there is none.
    """
    known: list[tuple[bytes, int, int]] = []
    for row in tables.rows(0, tables.num_rows):
        if alignments.has(row.id):
            rank = hashlib.sha256(f"{settings.seed}:{row.id}".encode()).digest()
            known.append((rank, row.number, row.header_samples))
    known.sort()
    taken = np.cumsum([samples for _, _, samples in known])
    enough = int(np.searchsorted(taken, settings.hours * 3600 * SAMPLE_RATE_HZ)) + 1
    if not known:
        raise DataError(
            f"evaluate.unit_quality.alignments: none of its {len(alignments):,} files of phone "
            f"times is called as one of the corpus' {tables.num_rows:,} recordings; give files the "
            "names of the recordings, with another ending"
        )
    return list(tables.at(sorted(number for _, number, _ in known[:enough])))


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
    """Those that lie in the window as a whole."""

    def frame(second: float) -> int:
        """The first whose centre is not before."""
        from_start = second * SAMPLE_RATE_HZ - start_sample - grid.field / 2
        return int(np.ceil(from_start / grid.hop))

    for before, phone, after in zip(phones, phones[1:], phones[2:], strict=False):
        joined = max(phone.start_s - before.end_s, after.start_s - phone.end_s) < 1e-3
        first, end = frame(before.start_s), frame(after.end_s)
        if (
            joined
            and before.label
            and phone.label
            and after.label
            and 0 <= first < end <= num_frames
        ):
            yield before.label, phone.label, after.label, slice(first, end)


def _heard(attempt: Attempt, rows: Sequence[Row]) -> tuple[list[Judged], Spread, Grid]:
    """What the pool makes of the recordings. Raises DataError when nothing can be heard."""
    recipe = attempt.recipe
    encoder = EncoderSpec(
        url=attempt.upstream["encoder"].storage.url,
        layer=recipe.encoder.layer,
        output=recipe.encoder.output,
        precision=recipe.encoder.precision,
    )
    tasks = [
        [Part(row, 0, None) for row in page]
        for page in pages(rows, lambda row: row.header_samples, _TASK_SAMPLES)
    ]
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
