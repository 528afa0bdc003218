"""What the pretrain stage tells the training runtime."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.pretrain import rank_config
from jobs.speech.pretrain import MaskedPredictionSpec
from orchestrator.errors import RequestError
from orchestrator.spec.cluster import Resources
from tests.unit.jobs.test_targets import attempt_of
from tests.unit.orchestrator.recipes import pretrained_recipe

RECIPE = pretrained_recipe(**{"encoder.pretrain.lr": 0.002, "encoder.pretrain.seed": 7})


def test_ranks_share_the_batch_of_the_recipe(tmp_path: Path) -> None:
    config = rank_config(attempt_of(tmp_path, RECIPE, Resources(ranks_per_node=2)))
    assert (config.settings.steps, config.settings.global_batch, config.settings.seed) == (5, 4, 7)
    assert (config.execution.micro_batch, config.execution.zero_stage) == (2, 0)
    assert config.settings.optimizer.lr == 0.002
    spec = MaskedPredictionSpec.model_validate(config.spec)
    assert spec.pretrain == RECIPE.encoder.pretrain
    assert (spec.number, spec.targets_url) == (1, str(tmp_path / "targets"))
    assert spec.roots["speech"].path == tmp_path


def test_ranks_that_cannot_share_the_batch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"batch_size: 4 crops .* by 3 ranks"):
        rank_config(attempt_of(tmp_path, RECIPE, Resources(ranks_per_node=3)))
