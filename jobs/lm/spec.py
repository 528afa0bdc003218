"""What the ranks of a language model's training are told.

Imports no torch: a driver that only starts ranks is up seconds sooner.
"""

from __future__ import annotations

from collections.abc import Sequence

from jobs.training.rank import TrainingSettings
from orchestrator.plan.mixture import Stream
from orchestrator.spec.model import Spec
from orchestrator.spec.recipe import Model, Schedule, Train

TASK = "jobs.lm.task:LanguageModel"


class LanguageModelSpec(Spec):
    """What a language model's training is told besides what every training has."""

    model: Model
    """The recipe's model section."""
    context_length: int
    """Tokens in one sequence."""
    schedule: Schedule
    """The recipe's learning-rate schedule."""
    num_units: int
    """Rows of the vocabulary."""
    source: str
    """URL of the folder with the text model."""
    pack_url: str
    """Folder of the packed tokens."""
    stream_tokens: tuple[int, ...] = ()
    """Tokens of each source, where training mixes them; empty for one stream."""


def settings_of(train: Train, *, seed: int, mixture: Sequence[Stream] = ()) -> TrainingSettings:
    """The part of the recipe's ``train`` section that every training has."""
    shared = TrainingSettings.model_fields.keys() - {"seed", "mixture"}
    own = {name: getattr(train, name) for name in shared}
    return TrainingSettings(seed=seed, mixture=tuple(mixture), **own)
