"""What is known of the models that a recipe names before any is loaded: pins, configs, digests.

Folders are looked into where they are visible, a hub is asked where it answers at once; nodes say
the rest in the same words (`plan.model_config`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from orchestrator.control.executor import Request
from orchestrator.control.hub import Hub
from orchestrator.ledger.storage import sha256_of
from orchestrator.plan.model_config import (
    encoder_problems,
    preprocessor_problems,
    pretrain_problems,
    text_model_problems,
)
from orchestrator.plan.planner import Plan, Variant
from orchestrator.spec.cluster import Cluster
from orchestrator.spec.loader import resolve_env
from orchestrator.spec.recipe import COMMIT, Recipe

WEIGHTS, PREPROCESSOR = "model.safetensors", "preprocessor_config.json"
_CODEBOOK = "tokenizer.codebook"
_LOADED_BY = {"encoder": "encoder", "model": "train", _CODEBOOK: "codebook"}
"""Section of a recipe to the stage that loads the model it names."""
MAX_HASHED_BYTES = 4 * 10**9
"""Larger weights are left to the node that loads them: nobody waits that long for a submission."""


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """A model that a recipe names."""

    section: Literal["encoder", "model", "tokenizer.codebook"]
    name: str
    revision: str | None
    sha256: str | None
    file: str = WEIGHTS
    """What ``sha256`` is of."""

    @property
    def needed(self) -> tuple[str, ...]:
        """Files that a folder must have."""
        if self.section == _CODEBOOK:
            return (self.file,)
        return ("config.json", self.file) if self.sha256 else ("config.json",)

    def is_from_hub(self, cluster: Cluster) -> bool:
        """Whether nodes would fetch it: the cluster names no folder of it."""
        return self.name not in cluster.models and "/" in self.name

    def folder(self, cluster: Cluster) -> Path | None:
        """Its folder, as the cluster file says."""
        if self.name not in cluster.models:
            return None
        where = f"cluster: models.{self.name}"
        return Path(resolve_env(cluster.models[self.name], where=where))


def models_of(variants: Sequence[Variant], plan: Plan | None = None) -> tuple[NamedModel, ...]:
    """All models that the variants name, or that a plan of theirs loads, by name, each once."""
    found = dict.fromkeys(m for v in variants for m in _models_of(v.recipe))
    loaded = [m for m in found if plan is None or _LOADED_BY[m.section] in plan.scope.stages]
    return tuple(sorted(loaded, key=lambda model: model.name))


def moving_revisions(variants: Sequence[Variant], where: str) -> list[str]:
    """Revisions that are no commits, so that what they mean can change; ``where`` is the recipe.

    The remedy is today's commit, where the hub answers at once.
    """
    hub = Hub()
    return [
        f"{where}: {m.section}.revision: {m.revision!r} can move; "
        f"{_commit_to_write(hub, m.name, m.revision)}"
        for m in models_of(variants)
        if m.revision is not None and not COMMIT.fullmatch(m.revision)
    ]


def unfit_models(request: Request) -> list[str]:
    """Models that could be other ones tomorrow, and what configs say against the recipe."""
    hub, cluster, where = Hub(), request.cluster, request.recipe_file.name
    models = models_of(request.variants, request.plan)
    problems = [
        f"{where}: {m.section}.revision: missing, and {m.name} comes from the hub, where it can "
        f"move; {_commit_to_write(hub, m.name, 'main')}"
        for m in models
        if m.is_from_hub(cluster) and m.revision is None and m.section != _CODEBOOK
    ]
    for model in models:
        problems += _other_commit(model, cluster, where)
        if model.section == _CODEBOOK:
            continue
        found = _config_of(hub, model, cluster)
        if isinstance(found, str):
            problems.append(f"{request.cluster_file.name}: models.{model.name}: {found}")
        elif found:
            said = _preprocessor_of(model, cluster)
            problems += (
                f"{where}: {line}" for line in _problems(model, found, said, request.variants)
            )
    for variant in request.variants:
        problems += (f"{where}: {line}" for line in pretrain_problems(variant.recipe.encoder))
    return list(dict.fromkeys(problems))


def wrong_digests(request: Request) -> list[str]:
    """Models here whose weights are not those of the recipe, before anything is paid for."""
    left = {v for i in request.plan.instances if i.decision != "reuse" for v in i.variants}
    problems = []
    for model in models_of([v for v in request.variants if v.name in left], request.plan):
        folder = model.folder(request.cluster)
        weights = folder / model.file if folder else None
        if model.sha256 is None or weights is None or not weights.is_file():
            continue
        if weights.stat().st_size > MAX_HASHED_BYTES:
            continue
        if (digest := sha256_of(weights)) != model.sha256:
            problems.append(
                f"{request.recipe_file.name}: {model.section}.sha256: {weights} has {digest}; "
                "give the digest of the model you mean, or fetch it again"
            )
    return problems


def _models_of(recipe: Recipe) -> Iterator[NamedModel]:
    encoder, model = recipe.encoder, recipe.model
    if encoder.model:
        yield NamedModel(
            section="encoder",
            name=encoder.model,
            revision=encoder.revision,
            sha256=encoder.sha256,
        )
    yield NamedModel(
        section="model", name=model.text_model, revision=model.revision, sha256=model.sha256
    )
    if codebook := recipe.tokenizer.codebook:
        yield NamedModel(
            section="tokenizer.codebook",
            name=codebook.model,
            revision=codebook.revision,
            sha256=codebook.sha256,
            file=codebook.file,
        )


def _commit_to_write(hub: Hub, model: str, revision: str) -> str:
    if commit := hub.commit_of(model, revision):
        return f"write the commit that it is at today, {commit}"
    return "write a commit, 40 hex digits, as the list of commits on the model's page has them"


def _other_commit(model: NamedModel, cluster: Cluster, where: str) -> Iterator[str]:
    """A folder that the hub's own tools have filled with another commit than the recipe's."""
    folder = model.folder(cluster)
    commit = commit_of(folder) if folder and model.revision else ""
    if commit and commit != model.revision:
        yield (
            f"{where}: {model.section}.revision: {folder} holds commit {commit}; write that, or "
            "fetch the one that you mean"
        )


def commit_of(folder: Path) -> str:
    """The commit of a hub's model that a folder holds; empty where nothing tells.

    A snapshot of the hub's cache is called by it; `hf download --local-dir` notes it beside.
    """
    try:
        whole = folder.resolve()
        if whole.parent.name == "snapshots" and COMMIT.fullmatch(whole.name):
            return whole.name
        note = folder / ".cache" / "huggingface" / "download" / "config.json.metadata"
        commit = note.read_text().partition("\n")[0].strip()
    except (OSError, ValueError):
        return ""
    return commit if COMMIT.fullmatch(commit) else ""


def _config_of(hub: Hub, model: NamedModel, cluster: Cluster) -> Mapping[str, Any] | str:
    """A model's ``config.json``, empty where it cannot be seen from here; or what is wrong."""
    folder = model.folder(cluster)
    if folder is None:
        is_pinned = model.revision and COMMIT.fullmatch(model.revision)
        return hub.config_of(model.name, model.revision or "") if is_pinned else {}
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except OSError:
        return {}
    except ValueError:
        return f"{folder}/config.json is no JSON; fetch the model again"
    if not isinstance(config, Mapping):
        return f"{folder}/config.json is no JSON object; fetch the model again"
    return config


def text_model_config(recipe: Recipe, cluster: Cluster) -> Mapping[str, Any]:
    """The config of a recipe's text model where its folder is here and says it; else nothing."""
    model = next(m for m in _models_of(recipe) if m.section == "model")
    found = _config_of(Hub(), model, cluster) if model.folder(cluster) else {}
    return {} if isinstance(found, str) else found


def _preprocessor_of(model: NamedModel, cluster: Cluster) -> Mapping[str, Any] | None:
    """How an encoder's folder here says that waves are prepared; None where it does not.

    Empty for what cannot be seen from here.
    """
    folder = model.folder(cluster)
    if folder is None:
        return {}
    try:
        said = json.loads((folder / PREPROCESSOR).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, Mapping) else {}


def _problems(
    model: NamedModel,
    config: Mapping[str, Any],
    preprocessor: Mapping[str, Any] | None,
    variants: Sequence[Variant],
) -> Iterator[str]:
    for recipe in (v.recipe for v in variants):
        if model not in _models_of(recipe):
            continue
        if model.section == "model":
            yield from text_model_problems(config, recipe)
        else:
            yield from encoder_problems(config, recipe.encoder)
            yield from preprocessor_problems(preprocessor, recipe.encoder)
