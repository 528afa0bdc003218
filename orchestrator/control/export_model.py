"""Trained models of a run as folders that Hugging Face's ``from_pretrained`` reads.

In: finished artifacts, whose digests are checked. Out, for each model: its weights and config,
``units.json`` and the codebook, the encoder where the recipe has trained it, the recipe of this
model alone, ``lineage.json``, and a model card. The folder appears whole or not at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import CorruptError, RequestError
from orchestrator.ledger.artifact import Artifact
from orchestrator.ledger.new_folder import new_folder, require_free
from orchestrator.ledger.run import RunFolder, to_yaml
from orchestrator.ledger.status import Observed
from orchestrator.ledger.storage import sha256_of, to_json
from orchestrator.ledger.store import Store
from orchestrator.plan.planner import Instance
from orchestrator.report.model_card import model_card
from orchestrator.report.record import Record, VariantRecord, read_record
from orchestrator.spec.recipe import Recipe

MODEL, CODEBOOK = "model/", "codebook.safetensors"
UNITS, LINEAGE = "units.json", "lineage.json"


def export_models(
    run: RunFolder, store: Store, observed: Observed, to: Path, variant: str | None = None
) -> Iterator[tuple[Path, str]]:
    """Export every model that is trained, or that of a variant: where it is, and whose it is.

    A run of several trainings has a folder for each in ``to``, called as the training; one that
    is there already stays. Raises RequestError where there is none, and for a folder of something
    else; CorruptError for a file that is not what was published.
    """
    record = read_record(run, store, observed)
    planned = _planned(record, variant)
    finished = {stage.instance.id for stage in record.stages if stage.is_complete}
    folders = {i: (to if len(planned) == 1 else to / i).absolute() for i in planned}
    wanted = {i: of for i, of in planned.items() if i in finished}
    if not wanted:
        whose = f" of {variant}" if variant else ""
        raise RequestError(
            f"{record.plan.run}: no training{whose} is finished; "
            f"`orchestrator status {record.plan.run}` says how far they are"
        )
    missing = [i for i in wanted if not _is_exported(record, i, folders[i])]
    for instance in missing:
        require_free(folders[instance], "--to")
    recipes = {v.name: v.recipe for v in run.variants()}
    for instance, of in wanted.items():
        if instance in missing:
            with new_folder(folders[instance], "--to") as made:
                _write(record, store, of, recipes[of.name], made)
        yield folders[instance], of.name


def _planned(record: Record, wanted: str | None) -> dict[str, VariantRecord]:
    """By training, the first variant that it is of. Raises RequestError for none."""
    names = [variant.name for variant in record.variants]
    if wanted is not None and wanted not in names:
        raise RequestError(f"--variant: {wanted}: no such variant; the run has {', '.join(names)}")
    planned: dict[str, VariantRecord] = {}
    for variant in record.variants:
        if "train" in variant.instances and wanted in (None, variant.name):
            planned.setdefault(variant.instances["train"], variant)
    if not planned:
        raise RequestError(
            f"{record.plan.run}: trains no model: it was submitted to stop before that; submit "
            "the recipe without --until"
        )
    return planned


def _is_exported(record: Record, instance: str, folder: Path) -> bool:
    """Whether the folder is an export of that training."""
    try:
        about = json.loads((folder / LINEAGE).read_bytes())
        return bool(about["artifacts"]["train"]["key"] == record.plan.instance(instance).key)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _write(record: Record, store: Store, variant: VariantRecord, recipe: Recipe, to: Path) -> None:
    plan, cache = record.plan, to.parent / "fetched"
    own = {name: plan.instance(id_) for name, id_ in variant.instances.items()}
    parts = {n: store.artifact(own[n].stage, own[n].key) for n in ("train", "codebook", "encoder")}
    _copy(parts["train"], MODEL, to, cache)
    _copy(parts["codebook"], "codebook.", to, cache)
    if recipe.encoder.pretrain:
        _copy(parts["encoder"], "", to / "encoder", cache)
    units = units_of(recipe, parts["encoder"], to)
    config = json.loads((to / "config.json").read_bytes())
    # As TWIST's own release says where units begin in its vocabulary: here at 0.
    (to / "config.json").write_bytes(to_json({**config, "offset": units["offset"]}))
    (to / UNITS).write_bytes(to_json(units))
    (to / "recipe.yaml").write_bytes(to_yaml(recipe))
    (to / LINEAGE).write_bytes(to_json(lineage(record, own)))
    (to / "README.md").write_text(model_card(record, variant, recipe, units), encoding="utf-8")


def _copy(artifact: Artifact, prefix: str, to: Path, cache: Path) -> None:
    """The files of an artifact that begin so, without that prefix where it is a folder.

    Raises CorruptError where the bytes are others than its manifest says.
    """
    to.mkdir(exist_ok=True)
    for path, entry in artifact.manifest()["files"].items():
        if not path.startswith(prefix):
            continue
        target = to / path.removeprefix(prefix if prefix.endswith("/") else "")
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(artifact.storage.fetch(path, cache), target)
        except FileNotFoundError:
            raise CorruptError(
                f"{artifact.storage.url}/{path}: missing; `orchestrator verify` names all that are"
            ) from None
        if sha256_of(target) != entry["sha256"]:
            raise CorruptError(
                f"{artifact.storage.url}/{path}: bytes differ from the manifest's sha256; "
                "`orchestrator verify` names all that do"
            )


def units_of(recipe: Recipe, encoder: Artifact, folder: Path) -> dict[str, Any]:
    """What a program must know to make units that the model understands."""
    about, notes = json.loads((folder / "codebook.json").read_bytes()), encoder.storage
    spec = recipe.encoder
    origin: dict[str, Any] = {"model": spec.model, "revision": spec.revision, "sha256": spec.sha256}
    return {
        "num_units": recipe.tokenizer.num_clusters,
        "offset": 0,
        "bos": None,
        "eos": None,
        "context_length": recipe.train.context_length,
        "deduplicated": recipe.tokenizer.deduplicate,
        "encoder": {"folder": "encoder"} if spec.pretrain else origin,
        "layer": spec.layer,
        "output": spec.output,
        "frame_rate_hz": spec.frame_rate_hz,
        "precision": spec.precision,
        "normalize_waveform": bool(notes.read_json("encoder.json").get("normalize_waveform")),
        "codebook": {"file": CODEBOOK, **about},
    }


def lineage(record: Record, own: Mapping[str, Instance]) -> dict[str, Any]:
    """Every artifact that the model was made of, by node: its key, what that is of, its makers."""
    stages = {stage.instance.id: stage for stage in record.stages}
    return {
        "run": record.run.storage.url,
        "code": {name: record.code.get(name) for name in ("commit", "sha256", "python")},
        "artifacts": {
            name: {
                "key": instance.key,
                "inputs": instance.inputs,
                "facts": stages[instance.id].facts,
                "producer": stages[instance.id].producer,
            }
            for name, instance in own.items()
            if stages[instance.id].is_complete
        },
    }
