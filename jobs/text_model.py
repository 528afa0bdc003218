"""The text models that a run's language models start from: at hand, whole, what the recipe means.

They are looked at before any audio is, days before the training that needs them: a hub's is fetched
into the store, and of the weights only names, shapes and types are read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from jobs import hub
from jobs.attempt import Attempt
from jobs.weights import SAFETENSORS, TEXT_MODEL
from orchestrator.errors import Cause, CorruptError, RequestError, SpecErrors
from orchestrator.ledger.storage import sha256_of
from orchestrator.plan.model_config import text_model_problems
from orchestrator.spec.recipe import Model, Recipe

_REMEDY = "give a folder in Hugging Face format"


def require_all(attempt: Attempt) -> None:
    """Raise what `place` raises for a text model that this attempt's run will train.

    RequestError, too, for weights in a local folder that are not those of its config.
    """
    for recipe in _by_text_model(attempt.all_recipes) if attempt.scope.trains else ():
        place(attempt, recipe, _require_sound)


def place(
    attempt: Attempt, recipe: Recipe, judge: Callable[[Recipe, str], None] | None = None
) -> str:
    """URL of the folder with the text model; a hub's is fetched into the store first.

    ``judge`` is asked about a local folder; by default its config is, without torch: the ranks that
    load its weights judge the rest. A hub's are judged when they are fetched. Raises what ``judge``
    does, RequestError for a hub's weights that are not those of its config, CorruptError for other
    ones than the recipe's, SpecErrors when the recipe cannot train it, RunFailedError of the
    network.
    """
    model = recipe.model
    source = attempt.model_source(model.text_model)
    if Path(source).is_dir():
        (judge or require_fit)(recipe, source)
        verify_weights(model, source)
        return str(Path(source).resolve())
    kept = hub.keep(
        attempt,
        source,
        model.revision,
        sha256=model.sha256,
        where=TEXT_MODEL,
        judge=lambda folder: _require_sound(recipe, str(folder)),
    )
    require_fit(recipe, str(kept.fetch(hub.CONFIG, attempt.folder / "text_model").parent))
    return kept.url


def require_fit(recipe: Recipe, folder: str) -> None:
    """Raise SpecErrors when the text model's config says that this recipe cannot train it.

    RequestError when the folder has no config, or one that cannot be read.
    """
    path = Path(folder, hub.CONFIG)
    try:
        config = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise RequestError(f"{TEXT_MODEL}: {folder} has no {path.name}; {_REMEDY}") from None
    except ValueError as error:
        raise RequestError(f"{TEXT_MODEL}: {path}: {error}; {_REMEDY}") from None
    if not isinstance(config, dict):
        raise RequestError(f"{TEXT_MODEL}: {path}: is no JSON object; {_REMEDY}")
    if problems := list(text_model_problems(config, recipe)):
        raise SpecErrors(problems)


def verify_weights(spec: Model, source: str) -> None:
    """Compare a folder's weights with ``model.sha256``. Raises RequestError, CorruptError."""
    folder = Path(source)
    if spec.sha256 is None or not folder.is_dir():
        return
    if not (folder / SAFETENSORS).exists():
        raise RequestError(f"{TEXT_MODEL}: {folder} has no {SAFETENSORS}; {_REMEDY}")
    digest = sha256_of(folder / SAFETENSORS)
    if digest != spec.sha256:
        raise CorruptError(
            f"{folder / SAFETENSORS}: sha256 is {digest}, the recipe says {spec.sha256}; "
            "fetch it again",
            cause=Cause.BAD_REQUEST,
        )


def _require_sound(recipe: Recipe, folder: str) -> None:
    from jobs.lm.twist import require_loadable

    require_fit(recipe, folder)
    model, execution = require_loadable(recipe.model, folder), recipe.train.execution
    is_asked = execution is not None and execution.activation_checkpointing
    if is_asked and not model.supports_gradient_checkpointing:
        raise RequestError(
            f"train.execution.activation_checkpointing: {type(model).__name__} has none; leave it "
            "out, or name a text model of another family"
        )


def _by_text_model(recipes: Iterable[Recipe]) -> Iterable[Recipe]:
    """One recipe for each thing that is asked of a text model: sweeps mostly ask for the same."""
    found = {(r.model, r.train.context_length, r.train.execution): r for r in recipes}
    return found.values()
