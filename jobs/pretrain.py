"""The pretrain stage: one iteration of HuBERT's masked prediction, trained by `jobs.training`.

In: the corpus and the iteration's targets. Out: ``config.json`` and ``model.safetensors`` in
Hugging Face format, fp16, and the curve.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from jobs.attempt import Attempt, run_stage
from jobs.audio import places
from jobs.speech.pretrain import OPTIMIZER, TASK, MaskedPredictionSpec
from jobs.speech.utterances import source_roots
from jobs.training import driver
from jobs.training.placement import placed
from jobs.training.rank import RankConfig, TrainingSettings
from orchestrator.plan.execution import pretrain_execution
from orchestrator.plan.stages import pretraining

TOO_LARGE = (
    ".crop_s: one crop does not fit the device's memory; lower crop_s, hidden_size or num_layers, "
    "or use larger devices"
)


def work(attempt: Attempt) -> dict[str, Any]:
    """Train to the last step, from the newest checkpoint where there is one."""
    pretrain, _ = pretraining(attempt.recipe, attempt.part)
    with placed(attempt, partial(pretrain_execution, pretrain)) as place:
        return driver.train(attempt, rank_config(attempt), TOO_LARGE, place)


def rank_config(attempt: Attempt) -> RankConfig:
    """What the ranks are told. Raises RequestError when they cannot share the batch."""
    pretrain, iteration = pretraining(attempt.recipe, attempt.part)
    corpus, roots = attempt.upstream["corpus"].storage, source_roots(attempt)
    spec = MaskedPredictionSpec(
        pretrain=pretrain,
        number=int(attempt.part),
        corpus_url=corpus.url,
        targets_url=attempt.upstream["targets"].storage.url,
        places=places.ensured(corpus, attempt.recipe.corpus, roots),
        roots=roots,
    )
    settings = TrainingSettings(
        steps=iteration.steps,
        global_batch=pretrain.batch_size,
        seed=pretrain.seed,
        optimizer=OPTIMIZER.model_copy(update={"lr": pretrain.lr}),
        precision=pretrain.precision,
        checkpoint=pretrain.checkpoint,
    )
    most, world_size = driver.max_micro_batch(attempt), attempt.resources.world_size
    return driver.rank_config(
        attempt,
        task=TASK,
        spec=spec,
        settings=settings,
        execution=pretrain_execution(pretrain, world_size, most),
        section="encoder.pretrain",
    )


if __name__ == "__main__":
    sys.exit(run_stage("pretrain", work))
