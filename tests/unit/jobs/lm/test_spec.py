"""What the ranks of a language model's training are told."""

from __future__ import annotations

from jobs.lm.spec import settings_of
from tests.unit.orchestrator.recipes import recipe


def test_settings_are_the_recipes() -> None:
    train = recipe(**{"train.steps": 123}).train
    settings = settings_of(train, seed=7)
    assert (settings.seed, settings.steps) == (7, 123)
    for name in type(settings).model_fields.keys() - {"seed", "mixture"}:
        assert getattr(settings, name) == getattr(train, name)
