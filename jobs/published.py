"""A published codebook instead of a fitted one: fetched, checked on this corpus' speech, imported.

In: the file that the recipe pins, corpus and encoder. Out: what a fit gives, and
``published.json``: where the file is from, and how well it fits each layer beside a fresh fit. A
codebook of another layer, another output or another model is refused with those figures.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jobs import hub
from jobs.attempt import Attempt
from jobs.speech import sample
from jobs.speech.codebook_files import PublishedCodebook, read_published
from jobs.speech.feature_blocks import BlocksOnPool, block_pool
from jobs.speech.judged import Spread
from jobs.speech.lloyd import Fit, fit
from jobs.speech.transformer import View
from jobs.speech.units import create_same, view_of, write_codebook
from jobs.speech.utterances import Utterance, read_corpus
from jobs.speech.views import ViewWorker, spreads_of
from orchestrator.errors import Cause, CorruptError, DataError, RequestError
from orchestrator.ledger.storage import sha256_of, to_json
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.recipe import Codebook

WHERE = "tokenizer.codebook"
PUBLISHED = "published.json"
MAX_RATIO = 1.5
"""Of its inertia to that of a fresh fit on the same frames."""
_CLEARLY = 0.98
"""Layers next to each other can be much alike; what is this much better is no chance."""
_DIGITS = 5
log = logging.getLogger(__name__)
Report = Callable[[int, float], None]


def imported(attempt: Attempt, wanted: Codebook, on_iteration: Report) -> dict[str, Any]:
    """Check the codebook and write it; the facts of a fit, and how it was checked.

    Raises RequestError for a file that is no codebook of this encoder, CorruptError for one of
    another digest, DataError when nothing can be heard.
    """
    path = fetched(attempt, wanted)
    published = read_published(path, where=WHERE)
    encoder, stated = attempt.upstream["encoder"].storage, view_of(attempt.recipe.encoder)
    config = encoder.read_json("config.json")
    require_shape(published, path, attempt.recipe.tokenizer.num_clusters, config["hidden_size"])
    centroids_KD = torch.from_numpy(published.centroids_KD)
    if alike := num_alike(centroids_KD):
        log.warning("%s: %s has %d centroids that no frame can get", WHERE, path, alike)
    tables, seed = read_corpus(attempt), attempt.recipe.tokenizer.seed
    with block_pool(attempt, ViewWorker, [stated]) as pool:
        hours = attempt.recipe.codebook_hours
        utterances = sample.drawn(attempt, tables, pool, hours, seed)
        spreads = spreads_of(pool, utterances, centroids_KD, tick=attempt.check)
        blocks = BlocksOnPool(pool, utterances, stated, tick=attempt.check)
        fresh = fit(blocks, len(centroids_KD), seed, on_iteration=on_iteration)
    require_fit(spreads, stated, fresh)
    about = {
        "model": wanted.model,
        "revision": wanted.revision,
        "file": wanted.file,
        "sha256": sha256_of(path),
        "format": published.format,
        "dtype": published.dtype,
        "fresh_inertia": _rounded(fresh.inertia / fresh.num_frames),
        "views": [_row(view, spread) for view, spread in spreads.items()],
    }
    create_same(attempt.out, PUBLISHED, to_json(about))
    measured = spreads[stated]
    same = Fit(
        centroids=centroids_KD,
        inertia=measured.inertia,
        iterations=0,
        num_frames=measured.num_frames,
    )
    facts = write_codebook(attempt.out, same)
    return {**facts_of(facts, measured.num_frames, utterances), "published": about}


def facts_of(
    about: Mapping[str, Any], num_frames: int, utterances: Sequence[Utterance]
) -> dict[str, Any]:
    """What the manifest says of a codebook: its own facts, and how much it was measured on."""
    return {
        **{name: value for name, value in about.items() if name != "dim"},
        "num_frames": num_frames,
        "num_utterances": len(utterances),
        "audio_s": sum(u.num_samples for u in utterances) / SAMPLE_RATE_HZ,
    }


def fetched(attempt: Attempt, wanted: Codebook) -> Path:
    """The file, on this node, with the digest of the recipe.

    Raises RequestError when it cannot be had, CorruptError for another digest, RunFailedError of
    the network.
    """
    folder = Path(source := attempt.model_source(wanted.model))
    if not folder.is_dir():
        folder = hub.download(
            source, wanted.revision, where=f"{WHERE}.model", check=attempt.check, file=wanted.file
        )
    path = folder / wanted.file
    if not path.is_file():
        raise RequestError(f"{WHERE}.file: {path} is no file; check the path")
    found = sha256_of(path)
    if wanted.sha256 and found != wanted.sha256:
        raise CorruptError(
            f"{WHERE}.sha256: {path} has {found}, not {wanted.sha256}; "
            "give the digest of the codebook you mean",
            cause=Cause.BAD_REQUEST,
        )
    return path


def num_alike(centroids_KD: Tensor) -> int:
    """How many are equal to one before them, which is then the nearest."""
    return len(centroids_KD) - len(torch.unique(centroids_KD, dim=0))


def require_shape(published: PublishedCodebook, path: Path, num_clusters: int, dim: int) -> None:
    """Raise RequestError when the recipe or the encoder has other sizes."""
    found, its_dim = published.centroids_KD.shape
    if its_dim != dim:
        raise RequestError(
            f"{WHERE}: {path} has centroids of {its_dim} numbers, but the encoder's features have "
            f"{dim}; name the encoder that it was fitted on"
        )
    if found != num_clusters:
        raise RequestError(
            f"tokenizer.num_clusters: is {num_clusters}, but {path} has {found} centroids; "
            f"give {found}"
        )


def require_fit(spreads: Mapping[View, Spread], stated: View, fresh: Fit) -> None:
    """Log how well the codebook fits each view; raise RequestError when another fits better.

    Views differ in scale, so that they are compared by the share of their variance that is left.
    """
    if stated not in spreads:
        raise DataError(f"{WHERE}: nothing can be heard to check it on; look at the audio")
    for view, spread in spreads.items():
        log.info("codebook: %s", _words(view, spread))
    its, fresh_inertia = spreads[stated], fresh.inertia / fresh.num_frames
    ratio = its.inertia / its.num_frames / fresh_inertia
    log.info("codebook: a fresh fit %.5g; the codebook has %.2f times that", fresh_inertia, ratio)
    best = min(spreads, key=lambda view: spreads[view].unexplained)
    shown = dict.fromkeys([stated, best, *(v for v in spreads if _is_near(v, stated))])
    table = ", ".join(_words(view, spreads[view]) for view in shown)
    beside = f"{table}; a fresh fit of {stated.output} {fresh_inertia:.5g}"
    if spreads[best].unexplained < _CLEARLY * its.unexplained:
        raise RequestError(
            f"{WHERE}: its inertia is least for another view than the stated layer {stated.layer} "
            f"{stated.output} ({beside}); set encoder.layer: {best.layer} and "
            f"encoder.output: {best.output}, or name the codebook of the layer that you mean"
        )
    if not ratio <= MAX_RATIO:
        raise RequestError(
            f"{WHERE}: its inertia is {ratio:.2f} times that of a fresh fit, above {MAX_RATIO} "
            f"({beside}); name the encoder that it was fitted on, see encoder.normalize_waveform, "
            "or leave it out to fit one"
        )


def _is_near(view: View, stated: View) -> bool:
    """Whether it is the same layer taken otherwise, or the next one taken alike."""
    steps = abs(view.layer - stated.layer)
    return steps == 0 or (steps == 1 and view.output == stated.output)


def _words(view: View, spread: Spread) -> str:
    mean = spread.inertia / spread.num_frames
    return f"layer {view.layer} {view.output} {mean:.5g}, {spread.unexplained:.3f} of variance"


def _row(view: View, spread: Spread) -> dict[str, Any]:
    mean = spread.inertia / spread.num_frames
    return {
        "layer": view.layer,
        "output": view.output,
        "inertia": _rounded(mean),
        "of_variance": _rounded(spread.unexplained),
    }


def _rounded(value: float) -> float:
    """Without what another device would compute otherwise."""
    return float(f"{value:.{_DIGITS}g}")
