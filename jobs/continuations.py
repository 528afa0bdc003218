"""The continuations stage: what the model says after the beginning of a few test utterances."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch

from jobs.attempt import Attempt, run_stage
from jobs.scoring.continuation import choose, continue_units, prompt_length
from jobs.scoring.held_out import HeldOut, load_model
from orchestrator.ledger.storage import to_json
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.recipe import Continuations


def work(attempt: Attempt) -> dict[str, Any]:
    """Write continuations.json; returns how many there are."""
    torch.set_num_threads(attempt.resources.cpus_per_worker)
    cache = attempt.folder / "inputs"
    settings = attempt.recipe.evaluate.continuations
    assert settings is not None, "only a recipe that asks for the score has this node"
    model = load_model(attempt.upstream["train"].storage, cache, attempt.resources)
    split = HeldOut(attempt.upstream["pack"].storage, "test", cache)
    chosen = choose(np.array([len(units) for units in split.utterances]), settings.num_prompts)
    continuations = []
    for n in chosen:
        attempt.check()
        continuations.append(_continuation(attempt, model, split, n, settings))
        attempt.progress(len(continuations), len(chosen), "continuations")
    attempt.out.replace("continuations.json", to_json(continuations))
    return {"num_continuations": len(continuations)}


def _continuation(
    attempt: Attempt, model: Any, split: HeldOut, n: int, settings: Continuations
) -> dict[str, Any]:
    """The prompt of an utterance, what the model samples after it, and what was really said."""
    units = [int(unit) for unit in split.utterances[n]]
    length = prompt_length(len(units), int(split.num_samples[n]), settings.prompt_s)
    sampled = continue_units(
        model,
        units[:length],
        num_tokens=settings.num_tokens,
        temperature=settings.temperature,
        context_length=attempt.recipe.train.context_length,
        seed=settings.seed + n,
    )
    return {
        "id": split.ids[n],
        "prompt": units[:length],
        "prompt_s": length / len(units) * float(split.num_samples[n]) / SAMPLE_RATE_HZ,
        "continuation": sampled,
        "truth": units[length : length + settings.num_tokens],
    }


if __name__ == "__main__":
    sys.exit(run_stage("continuations", work))
