"""The continuations stage: what the model says after the beginning of a few test utterances.

Shape legend: B = 1, L tokens, V units.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from jobs.attempt import Attempt, run_stage
from jobs.scoring.held_out import HeldOut, load_model
from orchestrator.ledger.storage import to_json
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.recipe import Continuations


def work(attempt: Attempt) -> dict[str, Any]:
    """Write continuations.json; returns how many there are."""
    settings = attempt.recipe.evaluate.continuations
    assert settings is not None, "only a recipe that asks for the score has this node"
    model = load_model(attempt)
    split = HeldOut(attempt.upstream["pack"].storage, "test", attempt.cache)
    chosen = choose(np.array([len(units) for units in split.utterances]), settings.num_prompts)
    continuations: list[dict[str, Any]] = []
    started_at = time.monotonic()
    for n in chosen:
        attempt.check()
        continuations.append(_continuation(attempt, model, split, n, settings))
        sampled = len(continuations) * settings.num_tokens / (time.monotonic() - started_at)
        attempt.progress(
            len(continuations), len(chosen), "continuations", tokens_per_s=round(sampled, 1)
        )
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


def prompt_length(num_tokens: int, num_samples: int, prompt_s: float) -> int:
    """Tokens in the first ``prompt_s`` seconds, at the mean rate; at most half of them."""
    share = min(prompt_s * SAMPLE_RATE_HZ / max(num_samples, 1), 0.5)
    return max(1, round(num_tokens * share))


def choose(num_tokens: np.ndarray, count: int) -> list[int]:
    """The utterances to continue: the longest, for room to compare; ties by order."""
    order = sorted(range(len(num_tokens)), key=lambda n: (-num_tokens[n], n))
    return sorted(order[:count])


@torch.inference_mode()
def continue_units(
    model: Any,
    prompt: Sequence[int],
    *,
    num_tokens: int,
    temperature: float,
    context_length: int,
    seed: int,
) -> list[int]:
    """Sampled units after the prompt; the context never exceeds ``context_length``.

    Models without a cache of keys and values, such as Mamba, are given the whole context each time.
    """
    generator = torch.Generator().manual_seed(seed)
    units, past, fed = list(prompt), None, min(len(prompt), context_length)
    for _ in range(num_tokens):
        tokens_BL = torch.tensor([units[-fed:] if past is None else units[-1:]])
        known: dict[str, Any] = {} if past is None else {"past_key_values": past}
        out = model(input_ids=tokens_BL.to(model.device), use_cache=True, **known)
        weights_V = torch.softmax(out.logits[0, -1].double().cpu() / temperature, dim=-1)
        units.append(int(torch.multinomial(weights_V, 1, generator=generator)))
        past, fed = getattr(out, "past_key_values", None), fed + 1
        if fed > context_length:
            # Positions beyond training are meaningless to the model: start again from the newest
            # half of the context.
            past, fed = None, context_length // 2
    return units[len(prompt) :]


if __name__ == "__main__":
    sys.exit(run_stage("continuations", work))
