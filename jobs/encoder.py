"""The encoder stage: the HuBERT that turns audio into features, fixed by its weights' digest.

Out: ``config.json``, ``model.safetensors`` and ``encoder.json`` (layer, frame rate, hop, receptive
field, digest). A published model is copied into the store, so that a run needs its hub once;
``pretrain`` trains one on the corpus.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import HubertConfig, HubertModel

from jobs.attempt import Attempt, run_stage
from jobs.codebook import source_roots
from jobs.speech import pretrain, targets
from jobs.speech.utterances import CorpusRows, WaveReader
from orchestrator.errors import CorruptError, RequestError
from orchestrator.ledger.storage import sha256_of
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.recipe import Encoder, Pretrain

CONFIG, WEIGHTS, DESCRIPTION = "config.json", "model.safetensors", "encoder.json"
QUALITY = "unit_quality.json"
"""Beside published weights: what was measured on them, with their ``sha256``."""


def work(attempt: Attempt) -> dict[str, Any]:
    """Put the encoder into the artifact; its facts."""
    encoder = attempt.recipe.encoder
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        facts: dict[str, Any] = {}
        if encoder.pretrain:
            facts = _pretrain(attempt, encoder.pretrain, folder)
        elif encoder.model:
            source = attempt.model_source(encoder.model)
            copy_published(encoder, source, folder)
            facts = measured(Path(source), folder)
        description = describe(encoder, folder)
        attempt.out.upload(folder / CONFIG, CONFIG)
        attempt.out.upload(folder / WEIGHTS, WEIGHTS)
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=1, sort_keys=True) + "\n")
        attempt.out.upload(folder / DESCRIPTION, DESCRIPTION)
    return {**facts, **description}


def describe(encoder: Encoder, folder: Path) -> dict[str, Any]:
    """What later stages need to know. Raises RequestError when the recipe means another model."""
    config = HubertConfig.from_pretrained(folder)
    grid = targets.grid_of(config.conv_kernel, config.conv_stride)
    frame_rate_hz = SAMPLE_RATE_HZ / grid.hop
    if frame_rate_hz != encoder.frame_rate_hz:
        raise RequestError(
            f"encoder.frame_rate_hz: is {encoder.frame_rate_hz:g}, but the model's strides give "
            f"{frame_rate_hz:g}; say {frame_rate_hz:g}"
        )
    if encoder.layer > config.num_hidden_layers:
        raise RequestError(
            f"encoder.layer: is {encoder.layer}, but the model has {config.num_hidden_layers} "
            f"layers; give 1..{config.num_hidden_layers}"
        )
    return {
        "layer": encoder.layer,
        "frame_rate_hz": frame_rate_hz,
        "hop": grid.hop,
        "receptive_field": grid.field,
        "sha256": sha256_of(folder / WEIGHTS),
    }


def copy_published(encoder: Encoder, source: str, folder: Path) -> None:
    """Put a published model into ``folder`` in Hugging Face format.

    Raises CorruptError when the weights are not the recipe's, RequestError when they cannot be had.
    """
    local = Path(source)
    if local.is_dir() and (local / WEIGHTS).is_file():
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(local / name, folder / name)
    else:
        _download(encoder, source, folder)
    found = sha256_of(folder / WEIGHTS)
    if encoder.sha256 and found != encoder.sha256:
        raise CorruptError(
            f"encoder.sha256: {source}/{WEIGHTS} has {found}, not {encoder.sha256}; "
            "give the digest of the model you mean"
        )


def measured(source: Path, folder: Path) -> dict[str, Any]:
    """The unit quality that was measured on exactly these weights, where their folder says so."""
    if not (source / QUALITY).is_file():
        return {}
    quality = json.loads((source / QUALITY).read_text())
    return {"unit_quality": quality} if quality["sha256"] == sha256_of(folder / WEIGHTS) else {}


def join_corpus(rows: CorpusRows, reader: WaveReader, spec: Pretrain) -> targets.Samples:
    """The audio to train on, as one wave: ``max_hours`` by the hash of ids, in corpus order."""
    drawn = rows.at(_drawn(rows, spec.max_hours))
    grid = targets.grid_of(spec.conv_kernel, spec.conv_stride)
    return pretrain.join((reader.read(utterance) for utterance in drawn), grid)


def _drawn(rows: CorpusRows, max_hours: float) -> list[int]:
    ids, num_samples = rows.ids, rows.num_samples
    order = sorted(range(len(ids)), key=lambda i: hashlib.sha256(ids[i].encode()).digest())
    filled = np.cumsum(num_samples[order])
    return sorted(order[: np.searchsorted(filled, max_hours * 3600 * SAMPLE_RATE_HZ, side="right")])


def _pretrain(attempt: Attempt, spec: Pretrain, folder: Path) -> dict[str, Any]:
    torch.set_num_threads(attempt.resources.cpus_per_worker)
    rows = CorpusRows.read(attempt.upstream["corpus"].storage)
    stream_S = join_corpus(rows, WaveReader(source_roots(attempt)), spec)

    def pause(done: int, total: int) -> None:
        attempt.check()
        attempt.progress(done, total, "steps")

    model = pretrain.train(spec, stream_S, attempt.out, pause=pause)
    pretrain.save(model, folder)
    return pretrain.summary(spec, stream_S)


def _download(encoder: Encoder, source: str, folder: Path) -> None:
    try:
        model = HubertModel.from_pretrained(source, revision=encoder.revision)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise RequestError(
            f"encoder.model: {source} cannot be loaded ({reason}); "
            "name a local folder in the cluster's models"
        ) from None
    model.save_pretrained(folder)


if __name__ == "__main__":
    sys.exit(run_stage("encoder", work))
