"""The train stage: the language model, trained by `jobs.training` as `jobs.lm.task` says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from jobs import hub
from jobs.attempt import Attempt, run_stage
from jobs.lm.task import TASK, LanguageModelSpec, settings_of
from jobs.lm.twist import require_fit, verify_weights
from jobs.training import driver
from jobs.training.rank import RankConfig
from orchestrator.plan.execution import execution_of

TOO_LARGE = (
    ".execution.micro_batch: one sequence does not fit the device's memory; raise zero_stage, set "
    "offload or activation_checkpointing, or use larger devices"
)


def work(attempt: Attempt) -> dict[str, Any]:
    """Train to the last step, from the newest checkpoint where there is one."""
    return driver.train(attempt, rank_config(attempt), TOO_LARGE)


def text_model(attempt: Attempt) -> str:
    """URL of the folder with the text model, verified; a hub's is fetched into the store first.

    Raises RequestError, CorruptError for other weights than the recipe's, RunFailedError of the
    network.
    """
    model = attempt.recipe.model
    source = attempt.model_source(model.text_model)
    if Path(source).is_dir():
        require_fit(attempt.recipe, source)
        verify_weights(model, source)
        return str(Path(source).resolve())
    where = "model.text_model"
    kept = hub.keep(attempt, source, model.revision, sha256=model.sha256, where=where)
    require_fit(attempt.recipe, str(kept.fetch(hub.CONFIG, attempt.folder / "text_model").parent))
    return kept.url


def rank_config(attempt: Attempt) -> RankConfig:
    """What the ranks are told. Raises as `text_model`, and when they cannot share the batch."""
    recipe, world_size = attempt.recipe, attempt.resources.world_size
    execution = execution_of(recipe.train, world_size, driver.max_micro_batch(attempt))
    spec = LanguageModelSpec(
        model=recipe.model,
        context_length=recipe.train.context_length,
        schedule=recipe.train.schedule,
        num_units=recipe.tokenizer.num_clusters,
        source=text_model(attempt),
        pack_url=attempt.upstream["pack"].storage.url,
    )
    return driver.rank_config(
        attempt,
        task=TASK,
        spec=spec,
        settings=settings_of(recipe.train, seed=recipe.seed),
        execution=execution,
        section="train",
    )


if __name__ == "__main__":
    sys.exit(run_stage("train", work))
