"""The train stage: the language model, trained by `jobs.training` as `jobs.lm.task` says."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from jobs import hub, text_model
from jobs.attempt import Attempt, run_stage
from jobs.lm.spec import TASK, LanguageModelSpec, settings_of
from jobs.lm.token_stream import num_windows
from jobs.training import driver
from jobs.training.placement import placed
from jobs.training.rank import RankConfig
from orchestrator.ledger import checkpoints
from orchestrator.ledger.storage import Storage
from orchestrator.plan.device_memory import Device, device_of
from orchestrator.plan.execution import execution_of
from orchestrator.plan.mixture import Stream
from orchestrator.spec.recipe import Execution, Recipe

TOO_LARGE = (
    ".execution.micro_batch: one sequence does not fit the device's memory; raise zero_stage, set "
    "offload or activation_checkpointing, or leave execution out and say "
    "resources.train.gpu_memory_gb in the cluster file, or use larger devices"
)


def work(attempt: Attempt) -> dict[str, Any]:
    """Train to the last step, from the newest checkpoint where there is one."""
    source = text_model.place(attempt, attempt.recipe)
    split = partial(execution_of, attempt.recipe.train, device=device(attempt, source))
    with placed(attempt, split) as place:
        config = rank_config(attempt, source, split)
        return driver.train(attempt, config, TOO_LARGE, place)


def device(attempt: Attempt, source: str) -> Device | None:
    """What the training has to fit into, where that decides anything.

    A training that has begun keeps its ZeRO stage, whatever other devices it finds.
    """
    if attempt.recipe.train.execution or attempt.resources.gpu_memory_gb is None:
        return None
    begun = checkpoints.head_of(checkpoints.committed(attempt.out))
    config = Storage(source).read_json(hub.CONFIG)
    return device_of(
        attempt.recipe, attempt.resources, config, zero_stage=begun.zero_stage if begun else None
    )


def rank_config(attempt: Attempt, source: str, split: Callable[..., Execution]) -> RankConfig:
    """What the ranks are told. Raises RequestError if they cannot share a batch.

    ``source``: URL of the folder with the text model.
    """
    recipe, world_size = attempt.recipe, attempt.resources.world_size
    pack_facts = attempt.upstream["pack"].facts if recipe.mixture else {}
    execution = split(world_size, max_micro_batch=driver.max_micro_batch(attempt))
    spec = LanguageModelSpec(
        model=recipe.model,
        context_length=recipe.train.context_length,
        schedule=recipe.train.schedule,
        num_units=recipe.tokenizer.num_clusters,
        source=source,
        pack_url=attempt.upstream["pack"].storage.url,
        stream_tokens=tuple(stream_tokens(recipe, pack_facts).values()),
    )
    return driver.rank_config(
        attempt,
        task=TASK,
        spec=spec,
        settings=settings_of(
            recipe.train, seed=recipe.seed, mixture=mixture_of(recipe, pack_facts)
        ),
        execution=execution,
        section="train",
    )


def stream_tokens(recipe: Recipe, pack_facts: Mapping[str, Any]) -> dict[str, int]:
    """Tokens of each source, in the order of the packed streams; empty without a mixture."""
    found = {stream["source"]: stream["num_tokens"] for stream in pack_facts.get("streams", ())}
    return {source: found[source] for source in recipe.mixture_ratio}


def mixture_of(recipe: Recipe, pack_facts: Mapping[str, Any]) -> list[Stream]:
    """What the order of windows is mixed from; nothing without a mixture."""
    length, ratio = recipe.train.context_length, recipe.mixture_ratio
    return [
        Stream(name=source, num_windows=num_windows(tokens, length), weight=ratio[source])
        for source, tokens in stream_tokens(recipe, pack_facts).items()
    ]


if __name__ == "__main__":
    sys.exit(run_stage("train", work))
