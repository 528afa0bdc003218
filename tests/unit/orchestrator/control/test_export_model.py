"""What is exported of a run whose training is finished, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.control.export_model import export_models
from orchestrator.errors import CorruptError, RequestError
from orchestrator.spec.loader import load_recipe
from tests.unit.orchestrator.report.conftest import FACTS, Ledger, finish, recipe_of

CODEBOOK = {"num_clusters": 100, "dim": 192, "sha256": "e" * 64}


def trained(folder: Path) -> Ledger:
    """A finished run with the files that models consist of."""
    ledger = Ledger.create(folder, recipe_of({"model.init": ["twist", "cold"]}))
    for instance in ledger.plan.instances:
        storage = ledger.artifact(instance).storage
        if instance.stage == "train":
            storage.create_json("model/config.json", {"vocab_size": 100})
            storage.create("model/model.safetensors", instance.key.encode())
            storage.create("checkpoints/step-00000100/x", b"state")
        elif instance.stage == "codebook":
            storage.create("codebook.safetensors", b"centroids")
            storage.create_json("codebook.json", CODEBOOK)
        elif instance.stage == "encoder":
            storage.create_json("encoder.json", {"normalize_waveform": True})
        ledger.publish(instance)
    return ledger


def exported(ledger: Ledger, to: Path, variant: str | None = None) -> dict[str, Path]:
    made = export_models(ledger.run, ledger.store, ledger.observed, to, variant)
    return {whose: folder for folder, whose in made}


def test_each_training_is_a_folder_of_its_own(tmp_path: Path) -> None:
    ledger = trained(tmp_path / "ledger")
    found = exported(ledger, tmp_path / "out")
    trainings = {i.variants[0]: i for i in ledger.of_stage("train")}
    assert found == {name: tmp_path / "out" / i.id for name, i in trainings.items()}
    for name, folder in found.items():
        assert (folder / "model.safetensors").read_text() == trainings[name].key
        assert sorted(path.name for path in folder.iterdir()) == [
            "README.md", "codebook.json", "codebook.safetensors", "config.json", "lineage.json",
            "model.safetensors", "recipe.yaml", "units.json",
        ]  # fmt: skip
        assert json.loads((folder / "config.json").read_text()) == {"vocab_size": 100, "offset": 0}
        units = json.loads((folder / "units.json").read_text())
        assert (units["num_units"], units["normalize_waveform"]) == (100, True)
        assert units["output"] == "after_residual"
        lineage = json.loads((folder / "lineage.json").read_text())
        assert lineage["artifacts"]["train"]["key"] == trainings[name].key
        assert lineage["artifacts"]["train"]["facts"] == FACTS["train"]
        own = load_recipe(folder / "recipe.yaml", ())
        assert not own.sweep
        assert f"init={own.model.init}" == name


def test_one_variant_is_the_folder_itself(tmp_path: Path) -> None:
    ledger = trained(tmp_path / "ledger")
    assert exported(ledger, tmp_path / "out", "init=cold") == {"init=cold": tmp_path / "out"}
    with pytest.raises(RequestError, match=r"--variant: x: no such .* has init=twist, init=cold"):
        exported(ledger, tmp_path / "other", "x")
    with pytest.raises(RequestError, match=r"--to: .* is there already"):
        exported(ledger, tmp_path / "out", "init=twist")


def test_what_is_exported_stays_and_the_rest_joins_it(tmp_path: Path) -> None:
    ledger = trained(tmp_path / "ledger")
    last = ledger.of_stage("train")[-1]
    manifest = ledger.artifact(last).storage.read_bytes("MANIFEST.json")
    ledger.artifact(last).storage.delete("MANIFEST.json")
    (first,) = exported(ledger, tmp_path / "out").values()
    assert first.parent == tmp_path / "out"
    (first / "README.md").write_text("mine")
    ledger.artifact(last).storage.create("MANIFEST.json", manifest)
    assert len(exported(ledger, tmp_path / "out")) == 2
    assert (first / "README.md").read_text() == "mine"
    (tmp_path / "other" / last.id).mkdir(parents=True)
    (tmp_path / "other" / last.id / "file").touch()
    with pytest.raises(RequestError, match="is there already"):
        exported(ledger, tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == [last.id]


def test_bytes_that_are_others_than_published_are_refused(tmp_path: Path) -> None:
    ledger = trained(tmp_path / "ledger")
    storage = ledger.artifact(ledger.of_stage("train")[0]).storage
    storage.replace("model/model.safetensors", b"other")
    with pytest.raises(CorruptError, match=r"model\.safetensors: bytes differ .*verify"):
        exported(ledger, tmp_path / "out", "init=twist")
    storage.delete("model/model.safetensors")
    with pytest.raises(CorruptError, match=r"model\.safetensors: missing"):
        exported(ledger, tmp_path / "out", "init=twist")
    assert not (tmp_path / "out").exists()


def test_a_training_that_is_not_finished_is_named(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path, recipe_of({}))
    with pytest.raises(RequestError, match=r"no training is finished; `orchestrator status"):
        exported(ledger, tmp_path / "out")
    ledger = finish(tmp_path / "other")
    ledger.artifact(ledger.of_stage("train")[0]).storage.delete("MANIFEST.json")
    with pytest.raises(RequestError, match="no training of init=twist is finished"):
        exported(ledger, tmp_path / "out", "init=twist")
