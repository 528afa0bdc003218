"""A model scored on suites without a recipe, by ``jobs.score`` where jobs can run.

In: what is named as a model, and suites with their folders. Out: an order that says where the
model, its encoder and its codebook are, and then what ``jobs.score`` made of it.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple, get_args

from orchestrator.control.code_snapshot import code_snapshot
from orchestrator.control.export import ended_badly
from orchestrator.control.export_model import UNITS
from orchestrator.control.job import module_argv
from orchestrator.errors import RequestError
from orchestrator.ledger import checkpoints
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.storage import Storage, to_json
from orchestrator.ledger.store import Store
from orchestrator.plan.planner import Instance
from orchestrator.spec.cluster import Cluster
from orchestrator.spec.loader import resolve_env
from orchestrator.spec.recipe import Recipe, SuiteKind

CONFIG = "config.json"


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """What makes units of recordings."""

    encoder_url: str
    """Folder of the encoder as a run's store has it; empty where it is a published one."""
    published: Mapping[str, Any]
    """Else where it is to be had, its ``model``, ``revision``, ``sha256`` and frame rate."""
    codebook_url: str
    """Folder with the codebook."""
    num_units: int
    layer: int
    output: str
    precision: str
    normalize_waveform: bool
    deduplicated: bool


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint of a training, finished or not."""

    name: str
    """Of its folder: ``step-00000500-a0001``."""
    model: Mapping[str, Any]
    """The recipe's section."""
    text_model: str
    """Folder or hub's id of what it was made from, for its config."""
    store_url: str
    """Where a hub's model is kept."""


@dataclass(frozen=True, kw_only=True)
class ScoredModel:
    """A model, and what makes its units."""

    name: str
    """Of the model, as it is shown."""
    model_url: str
    """Folder in Hugging Face format; of a checkpoint, the artifact of its training."""
    context_length: int | None
    """Most tokens that it was trained to read at once; None for what its folder says."""
    tokenizer: Tokenizer
    checkpoint: Checkpoint | None = None


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What is to be scored."""

    models: tuple[ScoredModel, ...]
    """One, or the one that it is compared with besides."""
    suites: tuple[tuple[str, str], ...]
    """Kind and folder of each."""
    bootstrap_samples: int
    seed: int


def suite_named(text: str) -> tuple[str, str]:
    """Kind and folder of ``kind=folder``. Raises RequestError."""
    kind, _, folder = text.partition("=")
    kinds = get_args(SuiteKind)
    if kind not in kinds or not folder:
        raise RequestError(
            f"SUITE: {text}: give the suite and its folder, such as swuggy=/data/sLM21; the suites "
            f"are {', '.join(kinds)}"
        )
    if not Path(folder).is_dir():
        raise RequestError(f"SUITE: {text}: {folder} is no folder; check the path")
    return kind, str(Path(folder).absolute())


def is_model_folder(path: str) -> bool:
    """Whether MODEL is a folder in Hugging Face format, and no run."""
    return Path(path, CONFIG).is_file()


def says_units(folder: Path) -> bool:
    """Whether a model's folder says which units it reads, as what `orchestrator export` wrote."""
    return (folder / UNITS).is_file()


def tokenizer_of_export(folder: Path, cluster: Cluster | None) -> Tokenizer:
    """That of an exported model; a published encoder is where the cluster's ``models`` says.

    Raises RequestError for a folder that says nothing of units.
    """
    try:
        about = json.loads((folder / UNITS).read_bytes())
        return Tokenizer(
            **_encoder_of(folder, about, cluster),
            codebook_url=str(folder.absolute()),
            **{name: about[name] for name in ("num_units", "layer", "output", "precision")},
            normalize_waveform=about["normalize_waveform"],
            deduplicated=about["deduplicated"],
        )
    except FileNotFoundError:
        raise RequestError(
            f"{folder}: has no {UNITS} that says which units it reads; name by --tokenizer the run "
            "or the exported model whose encoder and codebook those are"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise RequestError(
            f"{folder / UNITS}: is not what `orchestrator export` writes ({error!r}); export again"
        ) from None


def _encoder_of(folder: Path, about: Mapping[str, Any], cluster: Cluster | None) -> dict[str, Any]:
    encoder = about["encoder"]
    if own := encoder.get("folder"):
        return {"encoder_url": str((folder / own).absolute()), "published": {}}
    name, here = encoder["model"], cluster.models if cluster else {}
    source = resolve_env(here[name], where=f"cluster: models.{name}") if name in here else name
    if source == name and "/" not in name:
        raise RequestError(
            f"{folder}: its encoder {name} is a folder of the cluster that it was trained on; give "
            "by --cluster a file whose models say where it is here"
        )
    pin = {"revision": encoder["revision"], "sha256": encoder["sha256"]}
    rate = {"frame_rate_hz": about["frame_rate_hz"]}
    return {"encoder_url": "", "published": {"model": source, **pin, **rate}}


def tokenizer_of_run(run: RunFolder, store: Store, variant: str | None) -> Tokenizer:
    """That of a variant of a run, or of all where they share it and none is named.

    Raises RequestError where there is no such variant, or its codebook is not finished.
    """
    return _tokenizer(run, store, _variant(run, variant or _any_if_shared(run)))


def _any_if_shared(run: RunFolder) -> str | None:
    """The first of several variants whose units are the same."""
    instances = [variant["instances"] for variant in run.plan().variants]
    shared = len({(i.get("encoder"), i.get("codebook"), i.get("tokenize")) for i in instances}) == 1
    return run.plan().variants[0]["name"] if shared else None


def _tokenizer(run: RunFolder, store: Store, chosen: _Variant) -> Tokenizer:
    encoder, codebook = (_finished(run, store, chosen, n) for n in ("encoder", "codebook"))
    recipe = chosen.recipe
    return Tokenizer(
        encoder_url=encoder,
        published={},
        codebook_url=codebook,
        num_units=recipe.tokenizer.num_clusters,
        layer=recipe.encoder.layer,
        output=recipe.encoder.output,
        precision=recipe.encoder.precision,
        normalize_waveform=False,  # the encoder's own folder says it
        deduplicated=recipe.tokenizer.deduplicate,
    )


class _Variant(NamedTuple):
    """A variant of a run, and its instances by node."""

    name: str
    recipe: Recipe
    instances: dict[str, Instance]


def _variant(run: RunFolder, wanted: str | None) -> _Variant:
    """The variant of a name, or the only one. Raises RequestError."""
    plan, recipes = run.plan(), {v.name: v.recipe for v in run.variants()}
    names = ", ".join(recipes)
    if wanted is None and len(recipes) > 1:
        raise RequestError(f"{run.name}: has several variants; name one by --variant: {names}")
    name = wanted or next(iter(recipes))
    if name not in recipes:
        raise RequestError(f"--variant: {name}: no such variant; the run has {names}")
    (row,) = (v for v in plan.variants if v["name"] == name)
    own = {node: plan.instance(id_) for node, id_ in row["instances"].items()}
    return _Variant(name, recipes[name], own)


def model_of_run(
    run: RunFolder, store: Store, variant: str | None, other: Tokenizer | None = None
) -> ScoredModel:
    """The trained model of a variant; with another tokenizer than its own where one is given.

    Raises RequestError as `tokenizer_of_run` does, and where the training is not finished.
    """
    chosen = _variant(run, variant)
    tokenizer = other or _tokenizer(run, store, chosen)
    return ScoredModel(
        name=f"{run.name}, {chosen.name}",
        model_url=f"{_finished(run, store, chosen, 'train')}/model",
        context_length=chosen.recipe.train.context_length,
        tokenizer=tokenizer,
    )


def checkpoint_of_run(
    run: RunFolder,
    store: Store,
    variant: str | None,
    step: int,
    other: Tokenizer | None = None,
    cluster: Cluster | None = None,
) -> ScoredModel:
    """The model of a variant as it was after so many steps; its training may be under way.

    ``cluster``: whose text models are here; the run's own when absent. Raises RequestError as
    `tokenizer_of_run` does, and where there is no such checkpoint or it is of ZeRO 3.
    """
    chosen = _variant(run, variant)
    tokenizer = other or _tokenizer(run, store, chosen)
    instance = _planned(run, chosen, "train")
    train = store.artifact(instance.stage, instance.key).storage
    kept = {manifest.step: manifest for manifest in checkpoints.committed(train)}
    if step not in kept:
        raise RequestError(
            f"--step: {instance.id} has no checkpoint of step {step:,}; there are "
            f"{', '.join(map(str, kept)) or 'none yet'}"
        )
    if kept[step].zero_stage == 3:
        raise RequestError(
            f"--step: {instance.id}: ZeRO 3 has spread the weights of its checkpoints over ranks; "
            "score the model once the training is finished"
        )
    return ScoredModel(
        name=f"{run.name}, {chosen.name}, step {step:,}",
        model_url=train.url,
        context_length=chosen.recipe.train.context_length,
        tokenizer=tokenizer,
        checkpoint=_checkpoint(kept[step].name, chosen.recipe, cluster or run.cluster(), store),
    )


def _checkpoint(name: str, recipe: Recipe, cluster: Cluster, store: Store) -> Checkpoint:
    text_model = recipe.model.text_model
    if text_model in cluster.models:
        where = f"cluster: models.{text_model}"
        text_model = resolve_env(cluster.models[text_model], where=where)
    section = recipe.model.model_dump(mode="json")
    return Checkpoint(name=name, model=section, text_model=text_model, store_url=store.storage.url)


def model_in_folder(folder: Path, tokenizer: Tokenizer) -> ScoredModel:
    """A model in Hugging Face format, which says itself how much it reads."""
    url = str(folder.absolute())
    return ScoredModel(name=str(folder), model_url=url, context_length=None, tokenizer=tokenizer)


def _planned(run: RunFolder, variant: _Variant, node: str) -> Instance:
    if node not in variant.instances:
        raise RequestError(
            f"{run.name}: has no {node}: it was submitted to stop before that; submit the recipe "
            "without --until"
        )
    return variant.instances[node]


def _finished(run: RunFolder, store: Store, variant: _Variant, node: str) -> str:
    """URL of the artifact of a node."""
    instance = _planned(run, variant, node)
    artifact = store.artifact(instance.stage, instance.key)
    if not artifact.is_complete():
        raise RequestError(
            f"{instance.id}: not finished; `orchestrator status {run.name}` says how far it is"
        )
    return artifact.storage.url


def _own_code(cluster: Cluster | None, to: Storage) -> dict[str, str]:
    """What lets another environment import this package alone, copied into a folder."""
    if cluster is None or not cluster.environment.venv:
        return {}
    for path, data in code_snapshot().items():
        to.replace(path, data)
    return {"PYTHONPATH": to.url, "PYTHONSAFEPATH": "1"}


def _ended(
    argv: Sequence[str], env: Mapping[str, str], errors: IO[str], on_line: Callable[[str], None]
) -> int:
    """The exit code of a process, which does not outlive this one; ``on_line`` gets its lines."""
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=errors, text=True, errors="replace", env=env
    )
    try:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                on_line(line.rstrip("\n"))
        return process.wait()
    finally:
        process.kill()
        process.wait()


def score(
    scoring: Scoring,
    cluster: Cluster | None,
    *,
    to: Path | None = None,
    on_line: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """The scores, as a JSON document; ``on_line`` is told how far the work is.

    ``to``: folder for scores, official tables and submissions. Raises what ``jobs.score`` does.
    """
    with tempfile.TemporaryDirectory(prefix="score-") as scratch:
        order, result = Path(scratch, "order.json"), Path(scratch, "scores.json")
        order.write_bytes(to_json(asdict(scoring)))
        words = ["--order", str(order), "--result", str(result)]
        words += ["--to", str(to.absolute())] if to else []
        argv = module_argv(cluster, "jobs.score", *words)
        env = {**os.environ, **_own_code(cluster, Storage(scratch).at("code"))}
        with tempfile.TemporaryFile("w+", errors="replace") as errors:
            if code := _ended(argv, env, errors, on_line):
                errors.seek(0)
                raise ended_badly(argv, code, errors.read())
        return dict(json.loads(result.read_bytes()))
