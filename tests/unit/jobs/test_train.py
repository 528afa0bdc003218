"""What the train stage tells the training runtime."""

from __future__ import annotations

from jobs.lm.spec import settings_of
from orchestrator.spec.recipe import Train


def test_settings_are_those_of_the_recipe() -> None:
    train = Train(context_length=8, global_batch_tokens=64, steps=5, precision="fp32")
    settings = settings_of(train, seed=7)
    assert (settings.global_batch, settings.seed, settings.steps) == (8, 7, 5)
    shared = set(type(settings).model_fields) & set(Train.model_fields)
    assert {"optimizer", "precision", "checkpoint", "validate_every_steps"} <= shared
    assert all(getattr(settings, name) == getattr(train, name) for name in shared)
