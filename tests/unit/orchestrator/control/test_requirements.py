"""What keeps a cluster from running a recipe."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.control.executor import Request
from orchestrator.control.request import prepare
from orchestrator.control.requirements import missing, num_gpus, unfit_variables
from orchestrator.errors import RequestError
from orchestrator.ledger.store import Store
from orchestrator.plan.execution import splits_of
from orchestrator.spec.cluster import Cluster
from orchestrator.spec.loader import load_cluster, load_recipe
from orchestrator.spec.recipe import Recipe
from tests.unit.orchestrator import broken
from tests.unit.orchestrator.recipes import cluster, recipe, variants_of
from tests.unit.source import ROOT

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HERE = os.cpu_count() or 1


def prepare_on(project: Path, *overrides: str, **changes: Any) -> Request:
    raw = {**yaml.safe_load(broken.CLUSTER), **changes}
    (project / "c.yaml").write_text(yaml.safe_dump(raw))
    return prepare(project / "r.yaml", project / "c.yaml", overrides)


def lacking(project: Path, *overrides: str, **changes: Any) -> list[str]:
    request = prepare_on(project, *overrides, **changes)
    return [line.replace(str(project), "{folder}") for line in missing(request)]


def test_nothing_is_missing(project: Path) -> None:
    assert lacking(project) == []


def test_missing_data(project: Path) -> None:
    assert lacking(project, "corpus.snapshot=v1", data={}) == [
        "c.yaml: data.speech: missing; map the source to its folder in {folder}/c.yaml, or give "
        "another file by --cluster"
    ]
    assert lacking(project, "corpus.snapshot=v1", data={"speech": "nope"}) == [
        "c.yaml: data.speech: {folder}/nope is not a folder; check the path"
    ]


def test_missing_models(project: Path) -> None:
    assert lacking(project, models={"hubert": "speech"}) == [
        "c.yaml: models.tiny-lm: missing; map it to a folder in Hugging Face format",
        "c.yaml: models.hubert: {folder}/speech has no config.json; check the path",
    ]


def test_a_hub_id_needs_no_folder(project: Path) -> None:
    hub = ("model.text_model=facebook/opt-125m", f"model.revision={COMMIT}")
    assert lacking(project, *hub, models={"hubert": "hubert"}) == []


def test_more_gpus_than_there_are(project: Path) -> None:
    (line,) = lacking(project, cpus=64, resources={"train": {"gpus_per_node": 4}})
    assert line.startswith("c.yaml: resources.train.gpus_per_node: 4 asked, this machine has ")


def test_one_gpu_more_than_there_are(project: Path) -> None:
    asked = num_gpus() + 1
    (line,) = lacking(project, cpus=64, resources={"train": {"gpus_per_node": asked}})
    assert line.startswith(f"c.yaml: resources.train.gpus_per_node: {asked} asked, this machine ")


def test_the_memory_of_this_machine_counts_where_it_trains_on_cores(project: Path) -> None:
    large = ("model.text_model=facebook/opt-66b", f"model.revision={COMMIT}")
    (line,) = lacking(project, *large)
    assert line.startswith("c.yaml: facebook/opt-66b needs 1056 GB of training state")
    on_gpus = lacking(project, *large, cpus=64, resources={"train": {"gpus_per_node": 1}})
    assert not any("training state" in line for line in on_gpus)


def test_bf16_needs_accelerators(project: Path) -> None:
    assert lacking(project, "train.precision=bf16") == [
        "c.yaml: resources.train.gpus_per_node: 0, but train.precision is bf16, "
        "which needs accelerators; use a cluster with GPUs, or --set train.precision=fp32"
    ]


def test_a_model_beyond_this_machine(project: Path) -> None:
    (line,) = lacking(project, "model.text_model=meta/huge-900b", f"model.revision={COMMIT}")
    assert line.startswith("c.yaml: meta/huge-900b needs 14400 GB of training state, this machine")


def test_more_ranks_than_cpus(project: Path) -> None:
    assert lacking(project, cpus=2, resources={"train": {"ranks_per_node": 4}}) == [
        "c.yaml: resources.train: 4 CPU cores asked, cpus is 2; lower ranks_per_node, nodes or "
        "cpus_per_worker, or raise cpus to 4"
    ]
    batch = f"train.global_batch_tokens={32 * 5 * HERE}"
    (line,) = lacking(project, batch, resources={"train": {"nodes": 5 * HERE}})
    assert line == (
        f"c.yaml: resources.train: {5 * HERE} CPU cores asked, this machine has {HERE}; lower "
        f"ranks_per_node, nodes or cpus_per_worker, or set cpus: {5 * HERE} where its "
        "cores may be shared"
    )


@pytest.mark.parametrize("stage", ["corpus", "encoder", "codebook", "tokenize", "pack"])
def test_a_worker_that_this_machine_can_never_hold(project: Path, stage: str) -> None:
    """Data stages too: an actor that asks for more than there is waits for ever."""
    cores = HERE + 2
    asked = {stage: {"cpus_per_worker": cores}}
    line = f"c.yaml: resources.{stage}.cpus_per_worker: {cores} CPU cores asked, "
    assert lacking(project, resources=asked) == [
        f"{line}this machine has {HERE}; ask for less, or set cpus: {cores} where its cores may be "
        "shared"
    ]
    assert lacking(project, cpus=1, resources=asked) == [
        f"{line}cpus is 1; ask for less, or raise cpus to {cores}"
    ]
    assert lacking(project, cpus=cores, resources=asked) == []


def test_a_data_stage_may_ask_for_more_workers_than_fit(project: Path) -> None:
    assert lacking(project, cpus=2, resources={"tokenize": {"max_workers": 64}}) == []


@pytest.mark.parametrize("stage", ["codebook", "tokenize", "train", "perplexity"])
def test_an_accelerator_that_is_not_there(project: Path, stage: str) -> None:
    asked = num_gpus() + 1
    (line,) = lacking(project, cpus=64, resources={stage: {"gpus_per_node": asked}})
    assert line.startswith(f"c.yaml: resources.{stage}.gpus_per_node: {asked} asked, this machine ")


def test_memory_counts_where_the_file_says_how_much(project: Path) -> None:
    (line,) = lacking(project, resources={"pack": {"mem_gb": 1e6}})
    assert line.startswith("c.yaml: resources.pack.mem_gb: 1e+06 asked, this machine has ")


def test_what_is_reused_asks_for_nothing(project: Path) -> None:
    request = prepare(project / "r.yaml", project / "c.yaml")
    corpus = request.plan.instances[0]
    artifact = request.store.artifact(corpus.stage, corpus.key)
    artifact.publish(inputs=corpus.inputs, facts={}, producer={})
    assert lacking(project, resources={"corpus": {"cpus_per_worker": 99}}) == []


@pytest.mark.parametrize("backend", ["local", "slurm"])
def test_workers_that_no_node_can_hold(project: Path, backend: str) -> None:
    asked = {"tokenize": {"gpus_per_node": 1, "gpus_per_worker": 2}}
    assert (
        "c.yaml: resources.tokenize.gpus_per_worker: 2 of the 1 GPUs of a node; lower it, or raise "
        "gpus_per_node"
    ) in lacking(project, resources=asked, backend=backend)
    asked = {"codebook": {"gpus_per_node": 4, "gpus_per_worker": 1.5}}
    assert (
        "c.yaml: resources.codebook.gpus_per_worker: 1.5 is neither a part of one GPU nor whole "
        "GPUs; round it"
    ) in lacking(project, resources=asked, backend=backend)


def test_ranks_that_cannot_share_the_batch(project: Path) -> None:
    (line,) = lacking(project, cpus=3, resources={"train": {"ranks_per_node": 3}})
    assert line.startswith("c.yaml: resources.train: 3 ranks: train.global_batch_tokens: 128 is 4")
    assert line.endswith("use 96 or 192 tokens, or a number of ranks out of 1, 2, 4")


@pytest.mark.parametrize(
    ("backend", "nodes", "says"),
    [
        ("slurm", {"min": 1, "max": 3}, ""),
        ("slurm", {"min": 3, "max": 4}, "c.yaml: resources.train: 3 ranks: "),
        ("ray", {"min": 3, "max": 4}, ""),
        ("ray", {"min": 3, "max": 3}, "c.yaml: resources.train: 3 ranks: "),
    ],
)
def test_the_fewest_nodes_share_the_batch_where_a_queue_gives_them(
    project: Path, backend: str, nodes: dict[str, int], says: str
) -> None:
    found = lacking(project, backend=backend, resources={"train": {"nodes": nodes}})
    splits = [line for line in found if "ranks" in line]
    assert [line.startswith(says) for line in splits] == [True] * bool(says)


def test_mixed_precision_needs_accelerators_on_any_cluster(project: Path) -> None:
    (problem,) = lacking(project, "train.precision=bf16", backend="slurm")
    assert "resources.train.gpus_per_node: 0, but train.precision is bf16" in problem


def test_other_backends_look_for_themselves(project: Path) -> None:
    assert lacking(
        project, "corpus.snapshot=v1", backend="slurm", models={}, data={"speech": "/no"}
    ) == [
        "c.yaml: models.hubert: missing; map it to a folder in Hugging Face format",
        "c.yaml: models.tiny-lm: missing; map it to a folder in Hugging Face format",
    ]


def in_a_bucket(project: Path, backend: str) -> list[str]:
    store = Store.open("s3://bucket/requirements")
    return missing(replace(prepare_on(project, backend=backend), store=store))


def test_a_slurm_store_must_be_a_folder(project: Path) -> None:
    """Known only once the variable is filled in."""
    assert in_a_bucket(project, "slurm") == [
        "c.yaml: store: s3://bucket/requirements is no path; "
        "jobs on Slurm need a folder that all nodes share: name one, to which "
        "`orchestrator resume` moves the runs of a bucket by their URLs"
    ]


def test_a_local_store_may_be_anywhere(project: Path) -> None:
    assert in_a_bucket(project, "local") == []


def test_a_machine_with_a_venv_of_its_own_is_not_asked_for_packages(project: Path) -> None:
    program = project / "venv" / "bin" / "python"
    program.parent.mkdir(parents=True)
    program.symlink_to("/bin/true")
    assert lacking(project, environment={"venv": "venv"}) == []


@pytest.mark.parametrize(
    ("settings", "value", "says"),
    [
        ({"notify": {"webhook": "${env:ADDRESS}"}}, "hooks.example/T0",
         "c.yaml: notify.webhook: ${env:ADDRESS} holds no address of http:// or https://"),
        ({"notify": {"webhook": "${env:ADDRESS}"}}, "", "c.yaml: notify.webhook: ${env:ADDRESS}"),
        ({"notify": {"webhook": "${env:ADDRESS}"}}, None,
         "c.yaml: notify.webhook: ADDRESS not set here; export and try again"),
        ({"environment": {"export": ["ADDRESS"]}}, None,
         "c.yaml: environment.export: ADDRESS not set here; export and try again"),
        ({"notify": {"command": ["./tell.sh"]}}, None,
         "c.yaml: notify.command: {folder}/tell.sh is no file that can be executed; "),
        ({"notify": {"command": ["./c.yaml"]}}, None,
         "c.yaml: notify.command: {folder}/c.yaml is no file that can be executed; "),
        ({"notify": {"command": ["./speech"]}}, None,
         "c.yaml: notify.command: {folder}/speech is no file that can be executed; "),
        ({"notify": {"command": ["/bin/sh"], "webhook": "${env:ADDRESS}"}}, "https://h/1", ""),
        ({"notify": {"command": ["tell"]}, "environment": {"export": ["ADDRESS"]}}, "", ""),
    ],
)  # fmt: skip
def test_hooks_that_nobody_would_hear_of(
    project: Path,
    settings: dict[str, Any],
    value: str | None,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _set("ADDRESS", value, monkeypatch)
    found = lacking(project, **settings)
    assert [line.startswith(says) for line in found] == [True] * bool(says), found


@pytest.mark.parametrize(
    ("value", "holds"),
    [
        ("./mlruns", "no URL and no absolute path"),
        ("mlruns", "no URL and no absolute path"),
        ("file:mlruns", "no URL and no absolute path"),
        ("localhost:5000", "no URL and no absolute path"),
        ("sqlite:///ml.db", "no URL and no absolute path"),
        ("", "no URL and no absolute path"),
        *[(good, "") for good in ("/a/b", "file:///a", "file:/a", "http://h:5000", "databricks")],
        *[(good, "") for good in ("sqlite:////a/ml.db", "postgresql+psycopg://u@h/d", "uc")],
    ],
)
def test_a_tracker_is_found_from_everywhere(
    value: str, holds: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _set("MLFLOW_TRACKING_URI", value, monkeypatch)
    asked = recipe(**{"tracking.mlflow": {"experiment": "e"}})
    found = list(unfit_variables(asked, cluster("/a", backend="local")))
    said = f"recipe: tracking.mlflow.uri: ${{env:MLFLOW_TRACKING_URI}} holds {holds}"
    assert [line.startswith(said) for line in found] == [True] * bool(holds)


@pytest.mark.parametrize("place", ["api_key", "base_url"])
def test_a_tracker_of_which_a_variable_is_empty(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "k")
    _set("EMPTY", "", monkeypatch)
    asked = recipe(**{"tracking.wandb": {"project": "p", place: "${env:EMPTY}"}})
    (found,) = unfit_variables(asked, cluster("/a", backend="local"))
    assert found.startswith(f"recipe: tracking.wandb.{place}: ${{env:EMPTY}} holds no")


@pytest.mark.parametrize(("backend", "number"), [("local", 1), ("slurm", 1), ("ray", 0)])
def test_what_is_looked_up_elsewhere_need_not_be_set_here(backend: str, number: int) -> None:
    where = cluster("/a", backend=backend, notify={"webhook": "${env:OF_NOBODY}"})
    assert len(list(unfit_variables(recipe(), where))) == number


def _set(name: str, value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is None:
        monkeypatch.delenv(name, raising=False)
    else:
        monkeypatch.setenv(name, value)


def batches_of(of: Recipe, where: Cluster) -> Iterator[str]:
    """How each number of ranks of a cluster shares the recipe's batches, or why it cannot."""
    for stage, split in splits_of(of, where.resources_of("train")).items():
        for size in where.resources_of(stage).sizes:
            try:
                execution = split(size.world_size)
                said = f"micro-batch {execution.micro_batch}, ZeRO {execution.zero_stage}"
                said += ", recomputed" * execution.activation_checkpointing
                said += ", offloaded" * execution.offload
            except RequestError as error:
                said = str(error)
            yield f"{stage} on {size.world_size}: {said}"


def test_every_recipe_on_every_cluster(golden: Callable[[str, str], None]) -> None:
    lines = []
    for recipe_file in sorted((ROOT / "recipes").rglob("*.yaml")):
        variants = [v.recipe for v in variants_of(load_recipe(recipe_file))]
        for cluster_file in sorted((ROOT / "cluster_configs").glob("*.yaml")):
            where = load_cluster(cluster_file)
            lines.append(f"{recipe_file.relative_to(ROOT / 'recipes')}, {cluster_file.name}")
            found = dict.fromkeys(line for of in variants for line in batches_of(of, where))
            lines += [f"  {line}" for line in found]
    golden("recipes_on_clusters.txt", "\n".join(lines) + "\n")
