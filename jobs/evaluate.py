"""The evaluate stage: perplexity on held-out speech, counting baselines, a few continuations."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from jobs.attempt import Attempt, run_stage
from jobs.lm.token_stream import bin_name, index_name, open_tokens
from jobs.scoring import perplexity
from jobs.scoring.continuation import choose, continue_units, prompt_length
from jobs.scoring.perplexity import Counts, Scored
from orchestrator.ledger.storage import Storage, to_json
from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.recipe import Evaluate

HELD_OUT = ("valid", "test")


def work(attempt: Attempt) -> dict[str, Any]:
    """Write scores.json, continuations.json and every utterance's NLL; returns the scores."""
    torch.set_num_threads(attempt.resources.cpus_per_worker)
    cache, pack = attempt.folder / "inputs", attempt.upstream["pack"].storage
    model = load_model(attempt.upstream["train"].storage, cache)
    if attempt.resources.gpus_per_node:
        model.cuda()
    counts = perplexity.count(
        open_tokens(pack.fetch(bin_name("train"), cache)), attempt.recipe.tokenizer.num_clusters
    )
    held_out = {name: HeldOut(pack, name, cache) for name in HELD_OUT}
    scores = {
        "rule": perplexity.RULE,
        "context_length": attempt.recipe.train.context_length,
        "splits": {
            name: score_split(attempt, model, counts, split) for name, split in held_out.items()
        },
    }
    said = continuations(
        model,
        held_out["test"],
        attempt.recipe.evaluate,
        context_length=attempt.recipe.train.context_length,
    )
    _publish_json(attempt.out, "scores.json", scores)
    _publish_json(attempt.out, "continuations.json", said)
    return {"splits": scores["splits"]}


class HeldOut:
    """The utterances of one split."""

    def __init__(self, pack: Storage, name: str, cache: Path) -> None:
        tokens = open_tokens(pack.fetch(bin_name(name), cache))
        index = pq.read_table(pack.fetch(index_name(name), cache))
        offsets, lengths = index["offset"].to_numpy(), index["num_tokens"].to_numpy()
        self.name = name
        self.ids: list[str] = index["id"].to_pylist()
        self.num_samples = index["num_samples"].to_numpy()
        self.utterances = [tokens[o : o + n] for o, n in zip(offsets, lengths, strict=True)]


def load_model(train: Storage, cache: Path) -> Any:
    """The trained model in fp32, ready to score."""
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    folder = (train.local_root or cache) / "model"
    for path in train.list("model"):
        train.fetch(path, cache)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def score_split(attempt: Attempt, model: Any, counts: Counts, split: HeldOut) -> dict[str, Any]:
    """Scores of the model and of both baselines on one split."""

    def tick(done: int) -> None:
        attempt.check()
        attempt.progress(done, max(done, len(split.utterances)), f"{split.name} windows")

    scored = perplexity.score_model(
        model,
        split.utterances,
        context_length=attempt.recipe.train.context_length,
        num_samples=split.num_samples,
        tick=tick,
    )
    _publish_utterances(attempt, split, scored)
    baselines = {
        "unigram": perplexity.score_unigram(
            counts, split.utterances, num_samples=split.num_samples
        ),
        "bigram": perplexity.score_bigram(counts, split.utterances, num_samples=split.num_samples),
    }
    return {
        "model": _summary(scored, attempt.recipe.evaluate),
        **{
            name: _summary(base, attempt.recipe.evaluate)
            for name, base in baselines.items()
            if base
        },
    }


def continuations(
    model: Any, split: HeldOut, settings: Evaluate, *, context_length: int
) -> list[dict[str, Any]]:
    """Prompts, what the model samples after them, and what was really said."""
    said = []
    for n in choose(np.array([len(units) for units in split.utterances]), settings.continuations):
        units = [int(unit) for unit in split.utterances[n]]
        length = prompt_length(len(units), int(split.num_samples[n]), settings.prompt_s)
        sampled = continue_units(
            model,
            units[:length],
            num_tokens=settings.continuation_tokens,
            temperature=settings.temperature,
            context_length=context_length,
            seed=settings.seed + n,
        )
        said.append(
            {
                "id": split.ids[n],
                "prompt": units[:length],
                "prompt_s": length / len(units) * float(split.num_samples[n]) / SAMPLE_RATE_HZ,
                "continuation": sampled,
                "truth": units[length : length + settings.continuation_tokens],
            }
        )
    return said


def _summary(scored: Scored, settings: Evaluate) -> dict[str, Any]:
    return perplexity.summary(
        scored, bootstrap_samples=settings.bootstrap_samples, seed=settings.seed
    )


def _publish_utterances(attempt: Attempt, split: HeldOut, scored: Scored) -> None:
    table = pa.table(
        {
            "id": split.ids,
            "nll": scored.nll,
            "num_scored": scored.num_scored,
            "num_samples": scored.num_samples.astype(np.int64),
        }
    )
    local = attempt.folder / f"{split.name}.nll.parquet"
    pq.write_table(table, local, compression="zstd")
    attempt.out.replace(local.name, local.read_bytes())
    local.unlink()


def _publish_json(out: Storage, path: str, value: Any) -> None:
    # Overwritten rather than created: an attempt that died here may have left the last bits of
    # another device's sums.
    out.replace(path, to_json(value))


if __name__ == "__main__":
    sys.exit(run_stage("evaluate", work))
