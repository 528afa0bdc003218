"""What the train stage tells the training runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from transformers import OPTConfig

from jobs.lm.spec import settings_of
from jobs.lm.token_stream import TokenStream
from jobs.train import device, mixture_of, stream_tokens
from orchestrator.spec.cluster import Resources
from orchestrator.spec.recipe import Train
from tests.unit.jobs.test_targets import attempt_of
from tests.unit.orchestrator.recipes import recipe
from tests.unit.orchestrator.trainings import save


def test_settings_are_those_of_the_recipe() -> None:
    train = Train(context_length=8, global_batch_tokens=64, steps=5, precision="fp32")
    settings = settings_of(train, seed=7)
    assert (settings.global_batch, settings.seed, settings.steps) == (8, 7, 5)
    shared = set(type(settings).model_fields) & set(Train.model_fields)
    assert {"optimizer", "precision", "checkpoint", "validate_every_steps"} <= shared
    assert all(getattr(settings, name) == getattr(train, name) for name in shared)


def test_a_mixture_is_made_of_the_packed_streams() -> None:
    """In the order of the sources, whatever order facts and weights are in."""
    two = {"corpus.sources": [{"name": "talks"}, {"name": "books"}], "train.context_length": 16}
    mixed = recipe(**two, mixture={"books": 0.5, "talks": 1.5})
    sizes = {"books": 33, "talks": 49}
    facts = {"streams": [{"source": name, "num_tokens": n} for name, n in sizes.items()]}
    assert list(stream_tokens(mixed, facts).items()) == [("talks", 49), ("books", 33)]
    streams = mixture_of(mixed, facts)
    assert [(s.name, s.num_windows, s.weight) for s in streams] == [
        ("talks", 3, 3),
        ("books", 2, 1),
    ]
    assert settings_of(mixed.train, seed=0, mixture=streams).mixture == tuple(streams)
    assert mixture_of(recipe(**two), facts) == []
    tokens = np.arange(82, dtype="<u2")
    packed = TokenStream(tokens, context_length=16, stream_tokens=(49, 33))
    assert packed.num_windows == sum(stream.num_windows for stream in streams)


def test_a_training_that_has_begun_keeps_its_zero_stage(tmp_path: Path) -> None:
    OPTConfig(num_hidden_layers=2).save_pretrained(tmp_path / "lm")
    known = Resources(gpus_per_node=2, gpu_memory_gb=80)
    attempt = attempt_of(tmp_path, recipe(), known)
    found = device(attempt, str(tmp_path / "lm"))
    assert found
    assert (found.shape.num_layers, found.fewest_ranks, found.zero_stage) == (2, 2, None)
    save(attempt.out, 8, 1)
    begun = device(attempt, str(tmp_path / "lm"))
    assert begun
    assert begun.zero_stage == 0


def test_memory_that_decides_nothing_is_not_asked_for(tmp_path: Path) -> None:
    stated = recipe(**{"train.execution": {"zero_stage": 1, "micro_batch": 1}})
    known = Resources(gpus_per_node=2, gpu_memory_gb=80)
    for of, resources in ((stated, known), (recipe(), Resources(gpus_per_node=2))):
        assert device(attempt_of(tmp_path, of, resources), str(tmp_path / "no folder")) is None
