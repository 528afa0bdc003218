"""The text models that a run's language models start from: at hand, whole, what the recipe means.

They are looked at before any audio is, days before the training that needs them: a hub's is fetched
into the store, and of the weights only names, shapes and types are read.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from jobs import hub
from jobs.attempt import Attempt
from jobs.lm.twist import require_fit, require_loadable, verify_weights
from orchestrator.spec.recipe import Recipe


def require_all(attempt: Attempt) -> None:
    """Raise what `place` raises for a text model of any variant that needs this attempt."""
    for recipe in _by_text_model(attempt.all_recipes):
        place(attempt, recipe)


def place(attempt: Attempt, recipe: Recipe) -> str:
    """URL of the folder with the text model; a hub's is fetched into the store first.

    Raises RequestError for weights that are not those of its config, CorruptError for other ones
    than the recipe's, SpecErrors when the recipe cannot train it, RunFailedError of the network.
    """
    model = recipe.model
    source = attempt.model_source(model.text_model)
    if Path(source).is_dir():
        _require_sound(recipe, source)
        verify_weights(model, source)
        return str(Path(source).resolve())
    kept = hub.keep(
        attempt,
        source,
        model.revision,
        sha256=model.sha256,
        where="model.text_model",
        judge=lambda folder: _require_sound(recipe, str(folder)),
    )
    require_fit(recipe, str(kept.fetch(hub.CONFIG, attempt.folder / "text_model").parent))
    return kept.url


def _require_sound(recipe: Recipe, folder: str) -> None:
    require_fit(recipe, folder)
    require_loadable(recipe.model, folder)


def _by_text_model(recipes: Iterable[Recipe]) -> Iterable[Recipe]:
    """One recipe for each thing that is asked of a text model: sweeps mostly ask for the same."""
    found = {(r.model, r.train.context_length, r.train.execution): r for r in recipes}
    return found.values()
