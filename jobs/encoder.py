"""The encoder stage: the model that turns audio into features, fixed by its weights' digest.

Out: ``config.json``, ``model.safetensors`` and ``encoder.json`` (layer, frame rate, hop, receptive
field, digest, whether waves are normalised). A published model is copied into the store, so that a
run needs its hub once; a pretrained one is that of the last ``pretrain`` node (role ``model``).
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import transformers

from jobs import hub
from jobs.attempt import Attempt, run_stage
from jobs.speech.grid import Grid, grid_of
from jobs.speech.speech_encoder import SpeechEncoder
from jobs.weights import SAFETENSORS, first_line, load_whole
from orchestrator.errors import Cause, CorruptError, RequestError, SpecErrors, cause_of
from orchestrator.ledger.storage import Storage, sha256_of
from orchestrator.plan.model_config import (
    ENCODERS,
    encoder_problems,
    normalizes_waveform,
    preprocessor_problems,
)
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.recipe import Encoder

CONFIG, PREPROCESSOR, WEIGHTS = hub.CONFIG, hub.PREPROCESSOR, SAFETENSORS
DESCRIPTION = "encoder.json"
QUALITY = "unit_quality.json"
"""Beside published weights: what was measured on them, with their ``sha256``."""


def work(attempt: Attempt) -> dict[str, Any]:
    """Put the encoder into the artifact; its facts."""
    encoder = attempt.recipe.encoder
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        facts: dict[str, Any] = {}
        if "model" in attempt.upstream:
            copy_pretrained(attempt.upstream["model"].storage, folder)
        elif encoder.model:
            source = attempt.model_source(encoder.model)
            copy_published(encoder, source, folder, check=attempt.check)
            facts = measured(Path(source), folder)
        description = describe(encoder, folder)
        attempt.out.upload(folder / CONFIG, CONFIG)
        attempt.out.upload(folder / WEIGHTS, WEIGHTS)
        (folder / DESCRIPTION).write_text(json.dumps(description, indent=1, sort_keys=True) + "\n")
        attempt.out.upload(folder / DESCRIPTION, DESCRIPTION)
    return {**facts, **description}


def describe(encoder: Encoder, folder: Path) -> dict[str, Any]:
    """What later stages need to know. Raises RequestError when the recipe means another model."""
    grid = require_sound(encoder, folder)
    normalizes = normalizes_waveform(_json_of(folder / PREPROCESSOR), encoder)
    return {
        **({"normalize_waveform": True} if normalizes else {}),
        "layer": encoder.layer,
        "frame_rate_hz": SAMPLE_RATE_HZ / grid.hop,
        "hop": grid.hop,
        "receptive_field": grid.field,
        "sha256": sha256_of(folder / WEIGHTS),
    }


def require_sound(encoder: Encoder, folder: Path) -> Grid:
    """How the model in a folder cuts audio into frames.

    Raises SpecErrors when it is not what the recipe means, RequestError when no encoder can be made
    of its config, or its weights are not those of it.
    """
    require_fit(encoder, str(folder))
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
    except Exception as error:  # of many types, by what is wrong with it
        if cause_of(error) is not Cause.ERROR:
            raise
        said = f"no encoder can be made of it ({first_line(error)}); mend it"
        raise RequestError(f"encoder.model: {folder}/{CONFIG}: {said}") from error
    SpeechEncoder.load(folder, encoder.layer, output=encoder.output)
    return grid_of(config.conv_kernel, config.conv_stride)


def require_fit(encoder: Encoder, source: str) -> None:
    """Raise SpecErrors when a model's config, as it is written, is not what the recipe means.

    A model of another family would be built all the same, and what is not in the weights drawn.
    """
    config, _ = transformers.PretrainedConfig.get_config_dict(source)
    path = Path(source) / PREPROCESSOR
    preprocessor = _json_of(path) if path.exists() else None
    problems = [*encoder_problems(config, encoder), *preprocessor_problems(preprocessor, encoder)]
    if problems:
        raise SpecErrors(problems)


def copy_published(
    encoder: Encoder, source: str, folder: Path, *, check: Callable[[], None] = lambda: None
) -> None:
    """Put a published model into ``folder`` in Hugging Face format.

    Raises CorruptError when the weights are not the recipe's, RequestError when they cannot be had,
    RunFailedError when the network fails.
    """
    where = "encoder.model"
    local = Path(source)
    if not local.is_dir():
        local = hub.download(source, encoder.revision, where=where, check=check)
    if (local / WEIGHTS).is_file():
        require_sound(encoder, local)  # here, where what is wrong can be mended, not in the copy
        shutil.copyfile(local / WEIGHTS, folder / WEIGHTS)
        shutil.copyfile(local / CONFIG, folder / CONFIG)
    else:
        require_fit(encoder, str(local))
        family = ENCODERS[_json_of(local / CONFIG)["model_type"]]
        model_class = getattr(transformers, f"{family}Model")
        load_whole(model_class, local, where=where).save_pretrained(folder)
    if (local / PREPROCESSOR).is_file():
        shutil.copyfile(local / PREPROCESSOR, folder / PREPROCESSOR)
    _require_digest(encoder, source, sha256_of(folder / WEIGHTS))


def _json_of(path: Path) -> dict[str, Any]:
    """What a file says; nothing where it is not there. Raises RequestError when it is no JSON."""
    try:
        said = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise RequestError(
            f"encoder.model: {path} is no JSON ({error}); fetch the model again"
        ) from None
    return said if isinstance(said, dict) else {}


def _require_digest(encoder: Encoder, source: str, found: str) -> None:
    if encoder.sha256 and found != encoder.sha256:
        raise CorruptError(
            f"encoder.sha256: {source}/{WEIGHTS} has {found}, not {encoder.sha256}; "
            "give the digest of the model you mean",
            cause=Cause.BAD_REQUEST,
        )


def measured(source: Path, folder: Path) -> dict[str, Any]:
    """The unit quality that was measured on exactly these weights, where their folder says so."""
    if not (source / QUALITY).is_file():
        return {}
    quality = json.loads((source / QUALITY).read_text())
    return {"unit_quality": quality} if quality["sha256"] == sha256_of(folder / WEIGHTS) else {}


def copy_pretrained(model: Storage, folder: Path) -> None:
    """Put the model of the last iteration of pretraining into ``folder``."""
    for name in (CONFIG, WEIGHTS):
        (folder / name).write_bytes(model.read_bytes(name))


if __name__ == "__main__":
    sys.exit(run_stage("encoder", work))
