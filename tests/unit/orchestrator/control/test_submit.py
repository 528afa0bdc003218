"""Which cluster is chosen, what a cluster lacks for a recipe, and what is planned."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.control.doctor import examine
from orchestrator.control.submit import (
    choose_cluster,
    code_origin,
    code_snapshot,
    listing_digest,
    missing,
    move,
    plan_document,
    prepare,
)
from orchestrator.errors import RequestError, SpecErrors
from orchestrator.ledger.run import RunFolder
from tests.unit.orchestrator import broken
from tests.unit.orchestrator.recipes import cluster


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty PATH, and a project with a cluster file of each kind, beside the current folder."""
    (tmp_path / "project" / "recipes").mkdir(parents=True)
    (tmp_path / "project" / "recipes" / "r.yaml").write_text(broken.RECIPE)
    (tmp_path / "project" / "cluster_configs").mkdir()
    for name in ("local", "ray", "slurm"):
        (tmp_path / "project" / "cluster_configs" / f"{name}.yaml").write_text(broken.CLUSTER)
    (tmp_path / "bin").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path


def with_slurm(home: Path) -> None:
    sbatch = home / "bin" / "sbatch"
    sbatch.write_text("#!/bin/sh\n")
    sbatch.chmod(0o755)


def chosen(home: Path, explicit: str | None = None) -> tuple[str, str]:
    path, why = choose_cluster(explicit, home / "project" / "recipes" / "r.yaml")
    return os.path.relpath(path, home / "project"), why


def test_without_anything_around_it_is_local(home: Path) -> None:
    assert chosen(home) == ("cluster_configs/local.yaml", "no RAY_ADDRESS and no sbatch here")


def test_sbatch_means_slurm(home: Path) -> None:
    with_slurm(home)
    assert chosen(home) == ("cluster_configs/slurm.yaml", "sbatch is on PATH")


def test_a_ray_address_comes_before_sbatch(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_slurm(home)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert chosen(home) == ("cluster_configs/ray.yaml", "RAY_ADDRESS is set")


def test_the_variable_comes_before_what_is_found(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    mine = home / "mine.yaml"
    mine.write_text(broken.CLUSTER)
    monkeypatch.setenv("ORCHESTRATOR_CLUSTER", str(mine))
    assert chosen(home) == ("../mine.yaml", "named by $ORCHESTRATOR_CLUSTER")


def test_the_option_comes_first(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_CLUSTER", "nowhere.yaml")
    given = str(home / "project" / "cluster_configs" / "ray.yaml")
    assert chosen(home, given) == ("cluster_configs/ray.yaml", "given by --cluster")


def test_beside_the_recipe_comes_before_here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = home / "elsewhere" / "cluster_configs"
    here.mkdir()
    (here / "local.yaml").write_text(broken.CLUSTER)
    assert chosen(home)[0] == "cluster_configs/local.yaml"
    assert choose_cluster(None, None)[0] == here / "local.yaml"


def test_no_cluster_says_where_it_looked(home: Path) -> None:
    with pytest.raises(RequestError) as raised:
        choose_cluster(None, None)
    looked = home / "elsewhere" / "cluster_configs" / "local.yaml"
    assert str(raised.value) == (
        "cluster: no local.yaml found (no RAY_ADDRESS and no sbatch here; "
        f"looked for {looked}); give --cluster FILE"
    )


def test_a_named_cluster_must_be_there(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_CLUSTER", "nowhere.yaml")
    with pytest.raises(RequestError) as raised:
        choose_cluster(None, None)
    assert str(raised.value) == (
        "nowhere.yaml: no such cluster file; check --cluster and $ORCHESTRATOR_CLUSTER"
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A recipe and a cluster with everything the recipe needs."""
    for model in ("hubert", "tiny-lm"):
        (tmp_path / model).mkdir()
        (tmp_path / model / "config.json").write_text("{}")
    (tmp_path / "speech").mkdir()
    (tmp_path / "speech" / "a.wav").write_bytes(b"1234")
    (tmp_path / "r.yaml").write_text(broken.RECIPE)
    (tmp_path / "c.yaml").write_text(broken.CLUSTER)
    return tmp_path


def lacking(project: Path, *overrides: str, **changes: Any) -> list[str]:
    raw = {**yaml.safe_load(broken.CLUSTER), **changes}
    (project / "c.yaml").write_text(yaml.safe_dump(raw))
    prepared = prepare(project / "r.yaml", project / "c.yaml", overrides)
    return [line.replace(str(project), "{folder}") for line in missing(prepared)]


def test_nothing_is_missing(project: Path) -> None:
    assert lacking(project) == []


def test_missing_data(project: Path) -> None:
    assert lacking(project, data={}) == [
        "c.yaml: data.speech: missing; map the source to its folder here"
    ]
    assert lacking(project, data={"speech": "nope"}) == [
        "c.yaml: data.speech: {folder}/nope is not a folder; check the path"
    ]


def test_missing_models(project: Path) -> None:
    assert lacking(project, models={"hubert": "speech"}) == [
        "c.yaml: models.hubert: {folder}/speech has no config.json; check the path",
        "c.yaml: models.tiny-lm: missing; map it to a folder in Hugging Face format",
    ]


def test_a_hub_id_needs_no_folder(project: Path) -> None:
    assert lacking(project, "model.text_model=facebook/opt-125m", models={"hubert": "hubert"}) == []


def test_more_gpus_than_there_are(project: Path) -> None:
    (line,) = lacking(project, cpus=64, resources={"train": {"gpus_per_node": 4}})
    assert line.startswith("c.yaml: resources.train.gpus_per_node: 4 asked, this machine has ")


def test_bf16_needs_accelerators(project: Path) -> None:
    assert lacking(project, "train.precision=bf16") == [
        "c.yaml: resources.train.gpus_per_node: 0, but train.precision is bf16, "
        "which needs accelerators; use a cluster with GPUs, or --set train.precision=fp32"
    ]


def test_a_model_beyond_this_machine(project: Path) -> None:
    (line,) = lacking(project, "model.text_model=meta/huge-900b")
    assert line.startswith("c.yaml: meta/huge-900b needs 14400 GB of training state, this machine")


def test_more_ranks_than_cpus(project: Path) -> None:
    assert lacking(project, cpus=2, resources={"train": {"ranks_per_node": 4}}) == [
        "c.yaml: resources.train: 4 CPU cores asked, 2 here; ask for fewer ranks"
    ]


def test_ranks_that_cannot_share_the_batch(project: Path) -> None:
    (line,) = lacking(project, cpus=3, resources={"train": {"ranks_per_node": 3}})
    assert line.startswith("c.yaml: resources.train: 3 ranks: train.global_batch_tokens: 128 is 4")
    assert line.endswith("use 96 or 192 tokens, or a number of ranks out of 1, 2, 4")


def test_a_run_moves_to_another_cluster_and_refuses_what_cannot_be(project: Path) -> None:
    prepared = prepare(project / "r.yaml", project / "c.yaml")
    run = RunFolder(prepared.store.run_storage(prepared.plan.run))
    run.create(prepared.plan, prepared.recipe, prepared.cluster, {}, {})
    assert move(run, project / "c.yaml") is False
    spec = yaml.safe_load((project / "c.yaml").read_text())
    other = project / "other.yaml"
    other.write_text(yaml.safe_dump({**spec, "resources": {"train": {"ranks_per_node": 3}}}))
    with pytest.raises(SpecErrors, match=r"other.yaml: resources.train: 3 ranks"):
        move(run, other)
    other.write_text(yaml.safe_dump({**spec, "resources": {"train": {"ranks_per_node": 2}}}))
    assert move(run, other) is True
    assert run.cluster().resources_of("train").ranks_per_node == 2
    assert move(run, other) is False


def test_mixed_precision_needs_accelerators_on_any_cluster(project: Path) -> None:
    (problem,) = lacking(project, "train.precision=bf16", backend="slurm")
    assert "resources.train.gpus_per_node: 0, but train.precision is bf16" in problem


def test_other_backends_look_for_themselves(project: Path) -> None:
    assert lacking(project, backend="slurm", models={}, data={"speech": "/no"}) == [
        "c.yaml: models.hubert: missing; map it to a folder in Hugging Face format",
        "c.yaml: models.tiny-lm: missing; map it to a folder in Hugging Face format",
    ]


def test_the_listing_is_part_of_the_corpus_key(project: Path) -> None:
    def corpus_key() -> str:
        return prepare(project / "r.yaml", project / "c.yaml").plan.instances[0].key

    before = corpus_key()
    (project / "speech" / ".hidden").write_bytes(b"x")
    assert corpus_key() == before
    (project / "speech" / "b.wav").write_bytes(b"x")
    changed = corpus_key()
    assert changed != before
    with_label = prepare(project / "r.yaml", project / "c.yaml", ["corpus.snapshot=v1"])
    assert with_label.plan.instances[0].inputs["fields"]["listing"] == {}


def test_a_listing_depends_on_names_and_sizes_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "x").mkdir(parents=True)
        (tmp_path / name / "x" / "1.wav").write_bytes(b"12")
        (tmp_path / name / "2.wav").write_bytes(b"1")
    os.utime(tmp_path / "b" / "2.wav", (0, 0))
    assert listing_digest(tmp_path / "a") == listing_digest(tmp_path / "b")
    (tmp_path / "b" / "2.wav").write_bytes(b"12")
    assert listing_digest(tmp_path / "a") != listing_digest(tmp_path / "b")


def test_a_plan_as_a_document(project: Path) -> None:
    prepared = prepare(project / "r.yaml", project / "c.yaml", name="mine")
    document = json.loads(plan_document(prepared))
    assert document["run"] == "mine"
    assert document["cluster"] == str(project / "c.yaml")
    assert document["store"] == str(project / "store")
    assert [i["decision"] for i in document["instances"]] == ["run"] * 8
    assert not (project / "store").exists()


def test_variants_of_a_sweep_are_prepared(project: Path) -> None:
    prepared = prepare(project / "r.yaml", project / "c.yaml", ["sweep.seed=[1, 2]"])
    assert [v.name for v in prepared.variants] == ["seed=1", "seed=2"]
    assert [v.recipe.seed for v in prepared.variants] == [1, 2]


def test_the_code_that_jobs_execute() -> None:
    snapshot = code_snapshot()
    assert {"orchestrator/plan/keys.py", "jobs/attempt.py", "orchestrator/report/page.html"} <= set(
        snapshot
    )
    assert not any("__pycache__" in path or path.startswith("tests") for path in snapshot)
    origin = code_origin()
    assert set(origin) == {"commit", "patch", "python", "packages"}
    assert "pydantic" in origin["packages"]


def test_the_doctor_names_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "speech").mkdir()
    where = cluster(
        str(tmp_path / "store"),
        backend="local",
        data={"speech": str(tmp_path / "speech"), "music": str(tmp_path / "music")},
        models={"hubert": str(tmp_path / "speech")},
    )
    checks = {c.name: c for c in examine(where)}
    assert checks["store"].passed
    assert checks["data.speech"].passed
    assert not checks["data.music"].passed
    assert checks["data.music"].detail == f"{tmp_path}/music: not a folder; check the path"
    assert checks["models.hubert"].detail == (
        f"{tmp_path}/speech: no config.json in it; check the path"
    )
    assert {"cpus", "gpus", "disk", "open files", "package torch"} <= set(checks)
    assert list((tmp_path / "store").rglob("*")) == []


def test_the_doctor_survives_a_store_that_cannot_be() -> None:
    checks = {c.name: c for c in examine(cluster("${env:NO_SUCH_VARIABLE}/store"))}
    assert not checks["store"].passed
    assert "environment variable NO_SUCH_VARIABLE is not set" in checks["store"].detail
