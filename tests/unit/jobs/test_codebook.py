"""What the codebook stage says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.attempt import Attempt
from jobs.codebook import fit_each, report_fit, report_iteration
from jobs.speech.lloyd import MAX_ITERATIONS, BlocksInMemory, Fit
from jobs.speech.transformer import View
from jobs.speech.units import CODEBOOK, CODEBOOK_FACTS
from orchestrator.errors import DataError, LeaseHeldError
from orchestrator.ledger.artifact import Artifact
from orchestrator.ledger.storage import Storage
from orchestrator.spec.loader import variant_recipe
from tests.unit.jobs.test_attempt import attempt_in
from tests.unit.orchestrator.recipes import recipe

FRAMES_ND = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))


def several(folder: Path, *settings: tuple[int, int]) -> tuple[Attempt, dict[str, dict[str, Any]]]:
    """An attempt at codebooks of some layers and sizes, and what it publishes."""
    own = [
        variant_recipe(recipe(), {"encoder.layer": layer, "tokenizer.num_clusters": num_clusters})
        for layer, num_clusters in settings
    ]
    artifacts = [Artifact("codebook", n, Storage(str(folder / n))) for n in "abc"[: len(own)]]
    published: dict[str, dict[str, Any]] = {}

    def publish(key: str, facts: Mapping[str, Any]) -> None:
        published[key] = dict(facts)

    attempt = replace(
        attempt_in(folder),
        own_recipes=tuple(own),
        artifacts=tuple(artifacts),
        upstreams=({},) * len(own),
        publish=publish,
    )
    return attempt, published


def blocks_of(view: View) -> BlocksInMemory:
    """Frames of a view; layer 1 has numbers nowhere."""
    return BlocksInMemory([FRAMES_ND if view.layer != 1 else FRAMES_ND * torch.nan])


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ((2, 31), "codebook of 31 clusters of layer 2 after_residual: num_clusters: 60 frames"),
        ((1, 3), "codebook of 3 clusters of layer 1 after_residual: encoder: its features hold"),
    ],
)
def test_one_that_cannot_be_fitted_fails_no_other(
    tmp_path: Path, bad: tuple[int, int], says: str
) -> None:
    attempt, published = several(tmp_path, (2, 4), bad, (2, 5))
    with pytest.raises(DataError, match=says) as error:
        fit_each(attempt, blocks_of, [])
    assert str(error.value).count("codebook of") == 1
    assert {key: facts["num_clusters"] for key, facts in published.items()} == {"a": 4, "c": 5}
    assert not attempt.outs[1].list()
    alone, _ = several(tmp_path / "alone", (2, 5))
    fit_each(alone, blocks_of, [])
    for name in (CODEBOOK, CODEBOOK_FACTS):
        assert alone.outs[0].read_bytes(name) == attempt.outs[2].read_bytes(name)


def test_what_is_fitted_is_published_at_once(tmp_path: Path) -> None:
    attempt, published = several(tmp_path, (2, 4), (2, 5))

    def ends(view: View) -> BlocksInMemory:
        if published:
            raise LeaseHeldError("gone")
        return blocks_of(view)

    with pytest.raises(LeaseHeldError):
        fit_each(attempt, ends, [])
    assert list(published) == ["a"]


def test_progress_goes_on_from_codebook_to_codebook(tmp_path: Path) -> None:
    attempt, _ = several(tmp_path, (2, 4), (2, 5), (2, 6))
    seen: list[dict[str, Any]] = []

    class Shown(Attempt):
        def progress(self, done: float, total: float, unit: str, **rates: float) -> None:
            seen.append({"done": done, "total": total, "unit": unit, **rates})

    shown = Shown(**{f.name: getattr(attempt, f.name) for f in fields(attempt) if f.init})
    fit_each(shown, blocks_of, [])
    done = [said["done"] for said in seen]
    assert done == sorted(done)
    assert {1, 2, 3} <= set(done)
    assert {said["total"] for said in seen} == {3}
    assert "codebooks, now 5 clusters of layer 2 after_residual" in [said["unit"] for said in seen]


@pytest.mark.parametrize("iterations", [1, 22, MAX_ITERATIONS])
def test_a_finished_fit_is_whole(tmp_path: Path, iterations: int) -> None:
    attempt = attempt_in(tmp_path)
    for number in range(1, iterations + 1):
        report_iteration(attempt, number, inertia=2.0)
    assert attempt.record.progress["total"] == MAX_ITERATIONS
    report_fit(
        attempt, Fit(centroids=torch.zeros(1, 1), inertia=2.0, iterations=iterations, num_frames=1)
    )
    progress = attempt.record.progress
    assert (progress["done"], progress["total"], progress["unit"]) == (
        iterations, iterations, "iterations",
    )  # fmt: skip
