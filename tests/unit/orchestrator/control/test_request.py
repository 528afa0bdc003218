"""From a recipe file to a run: what is planned, created, moved and refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.control.cluster_choice import open_store
from orchestrator.control.code_snapshot import FORMAT
from orchestrator.control.request import (
    interrupted,
    move,
    prepare,
    start,
    submit,
)
from orchestrator.errors import RequestError, SpecErrors
from orchestrator.ledger.lease import Process
from orchestrator.ledger.run import RunFolder
from tests.unit.orchestrator.ledger.test_source_files import deep_folder
from tests.unit.orchestrator.recipes import cluster, plan_of, recipe


def test_a_run_moves_to_another_cluster_and_refuses_what_cannot_be(project: Path) -> None:
    request = prepare(project / "r.yaml", project / "c.yaml")
    run = RunFolder(request.store.run_storage(request.plan.run))
    run.create(request.plan, request.recipe, request.cluster, {}, {"format": FORMAT})
    assert move(run, project / "c.yaml") is False
    spec = yaml.safe_load((project / "c.yaml").read_text())
    other = project / "other.yaml"
    other.write_text(yaml.safe_dump({**spec, "resources": {"train": {"ranks_per_node": 3}}}))
    with pytest.raises(SpecErrors, match=r"other.yaml: resources.train: 3 ranks"):
        move(run, other)
    other.write_text(
        yaml.safe_dump({**spec, "cpus": 1, "resources": {"tokenize": {"cpus_per_worker": 2}}})
    )
    with pytest.raises(SpecErrors, match=r"other.yaml: resources.tokenize.cpus_per_worker: 2 CPU"):
        move(run, other)
    other.write_text(yaml.safe_dump({**spec, "resources": {"train": {"ranks_per_node": 2}}}))
    assert move(run, other) is True
    assert run.cluster().resources_of("train").ranks_per_node == 2
    assert move(run, other) is False


def test_a_run_of_another_version_is_not_moved(project: Path) -> None:
    request = prepare(project / "r.yaml", project / "c.yaml")
    run = RunFolder(request.store.run_storage(request.plan.run))
    run.create(request.plan, request.recipe, request.cluster, {}, {"format": FORMAT - 1})
    other = project / "other.yaml"
    spec = yaml.safe_load((project / "c.yaml").read_text())
    other.write_text(yaml.safe_dump({**spec, "cpus": 1}))
    with pytest.raises(RequestError, match="was submitted by another version"):
        move(run, other)
    assert run.num_moves == 0


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


def test_what_lies_in_a_suite_is_part_of_the_key_of_its_units(project: Path) -> None:
    spec = yaml.safe_load((project / "c.yaml").read_text())
    spec["data"]["swuggy"] = str(project / "suite")
    (project / "c.yaml").write_text(yaml.safe_dump(spec))
    asked = ["evaluate.suites={swuggy: {}}", "corpus.snapshot=v1"]
    with pytest.raises(SpecErrors, match=r"c.yaml: data.swuggy: .*suite is not a folder here"):
        prepare(project / "r.yaml", project / "c.yaml", asked)
    (project / "suite").mkdir()
    keys = []
    for gold in (b"a,1", b"a,0", b"a,1"):
        (project / "suite" / "gold.csv").write_bytes(gold)
        plan = prepare(project / "r.yaml", project / "c.yaml", asked).plan
        keys.append({i.node: i.key for i in plan.instances})
    assert keys[0] == keys[2]
    other = {node for node in keys[0] if keys[0][node] != keys[1][node]}
    assert other == {"suite_units.swuggy", "suite_scores.swuggy"}


def test_a_part_of_a_source_that_cannot_be_listed_is_refused(project: Path) -> None:
    deep_folder(project / "speech")
    with pytest.raises(SpecErrors, match=r"c.yaml: data.speech: .*speech/.+: .+; make all of it"):
        prepare(project / "r.yaml", project / "c.yaml")


def test_a_plan_begins_nothing(project: Path) -> None:
    prepared = prepare(project / "r.yaml", project / "c.yaml", name="mine")
    assert prepared.plan.run == "mine"
    assert [i.decision for i in prepared.plan.instances] == ["run"] * 8
    assert not (project / "store").exists()


def test_variants_of_a_sweep_are_prepared(project: Path) -> None:
    prepared = prepare(project / "r.yaml", project / "c.yaml", ["sweep.seed=[1, 2]"])
    assert [v.name for v in prepared.variants] == ["seed=1", "seed=2"]
    assert [v.recipe.seed for v in prepared.variants] == [1, 2]


def of_two_sources(**second: Any) -> str:
    """A sweep over the source that is there, and another."""
    points = {
        "one": {"corpus.sources": [{"name": "speech", "language": "en"}]},
        "two": {"corpus.sources": [{"name": "more", "language": "en"} | second]},
    }
    return f"sweep={json.dumps({'speech': points})}"


def test_every_variants_sources_are_looked_for_and_listed(project: Path) -> None:
    with pytest.raises(SpecErrors, match=r"^c.yaml: data.more: missing; map the source"):
        prepare(project / "r.yaml", project / "c.yaml", [of_two_sources()])
    shutil.copytree(project / "speech", project / "more")
    (project / "more" / "b.wav").write_bytes(b"x")
    spec = yaml.safe_load((project / "c.yaml").read_text())
    data = {"speech": "speech", "more": "more"}
    (project / "c.yaml").write_text(yaml.safe_dump({**spec, "data": data}))
    made = prepare(project / "r.yaml", project / "c.yaml", [of_two_sources()])
    listings = [i.inputs["fields"]["listing"] for i in made.plan.instances if i.stage == "corpus"]
    assert [list(listing) for listing in listings] == [["speech"], ["more"]]
    assert listings[0]["speech"] != listings[1]["more"]


def test_what_several_adapters_find_under_one_name_has_no_key(project: Path) -> None:
    (project / "speech" / "manifest.csv").write_text("path\n")
    with pytest.raises(SpecErrors) as raised:
        prepare(
            project / "r.yaml",
            project / "c.yaml",
            [of_two_sources(name="speech", adapter="manifest")],
        )
    assert str(raised.value) == (
        "sweep: corpus.sources: speech is listed by several adapters; give the source of each a "
        "name of its own"
    )


def test_a_label_is_of_all_variants_or_of_none(project: Path) -> None:
    labels = "sweep={of: {labelled: {corpus.snapshot: v1}, listed: {corpus.snapshot: null}}}"
    with pytest.raises(SpecErrors, match=r"^sweep: corpus.snapshot: give a label to every variant"):
        prepare(project / "r.yaml", project / "c.yaml", [labels])


@pytest.mark.parametrize("backend", ["local", "slurm"])
def test_a_source_that_cannot_be_listed_here_has_no_key(project: Path, backend: str) -> None:
    """An empty listing would be the key of other data."""
    spec = yaml.safe_load((project / "c.yaml").read_text())
    (project / "c.yaml").write_text(
        yaml.safe_dump({**spec, "backend": backend, "data": {"speech": "elsewhere"}})
    )
    with pytest.raises(SpecErrors) as raised:
        prepare(project / "r.yaml", project / "c.yaml")
    assert str(raised.value) == (
        f"c.yaml: data.speech: {project}/elsewhere is not a folder here; submit where it is "
        "mounted, or give corpus.snapshot"
    )
    assert prepare(project / "r.yaml", project / "c.yaml", ["corpus.snapshot=v1"]).plan


@pytest.mark.parametrize("name", ["manifest.csv", "shard-000000.tar", "train.parquet"])
def test_a_source_whose_root_is_a_file_is_told_to_name_the_folder(project: Path, name: str) -> None:
    (project / "speech" / name).touch()
    spec = yaml.safe_load((project / "c.yaml").read_text())
    spec["data"] = {"speech": f"speech/{name}"}
    (project / "c.yaml").write_text(yaml.safe_dump(spec))
    with pytest.raises(SpecErrors) as raised:
        prepare(project / "r.yaml", project / "c.yaml")
    said = f"data.speech: {project}/speech/{name} is a file; give the folder that it is in"
    assert str(raised.value) == f"c.yaml: {said}"


def test_a_source_that_is_not_mounted_here_has_no_key(project: Path) -> None:
    shutil.rmtree(project / "speech")
    (project / "speech").mkdir()
    with pytest.raises(SpecErrors) as raised:
        prepare(project / "r.yaml", project / "c.yaml")
    said = f"c.yaml: data.speech: {project}/speech: holds nothing; see that it is mounted"
    assert str(raised.value) == said


def test_a_source_without_a_root_has_no_key_either(project: Path) -> None:
    spec = yaml.safe_load((project / "c.yaml").read_text())
    (project / "c.yaml").write_text(yaml.safe_dump({**spec, "data": {}}))
    with pytest.raises(SpecErrors, match=r"^c.yaml: data.speech: missing; map the source"):
        prepare(project / "r.yaml", project / "c.yaml")


def test_nothing_is_created_on_a_cluster_that_cannot_be_submitted_to(project: Path) -> None:
    spec = yaml.safe_load((project / "c.yaml").read_text())
    (project / "c.yaml").write_text(yaml.safe_dump({**spec, "backend": "fake"}))
    request = prepare(project / "r.yaml", project / "c.yaml")
    with pytest.raises(RequestError) as raised:
        submit(request)
    assert str(raised.value) == (
        "cluster: backend: 'fake' can be planned for but not submitted to; use local, slurm, ray"
    )
    assert request.store.runs() == ()


def test_a_run_does_not_move_where_nothing_can_execute_it(project: Path) -> None:
    request = prepare(project / "r.yaml", project / "c.yaml")
    run = RunFolder(request.store.run_storage(request.plan.run))
    run.create(request.plan, request.recipe, request.cluster, {}, {})
    other = project / "ray.yaml"
    other.write_text((project / "c.yaml").read_text().replace("backend: local", "backend: fake"))
    with pytest.raises(RequestError, match="can be planned for but not submitted to"):
        move(run, other)
    assert run.num_moves == 0


def test_a_run_of_an_earlier_version_is_left_to_it(project: Path) -> None:
    request = prepare(project / "r.yaml", project / "c.yaml")
    run = RunFolder(request.store.run_storage("old"))
    run.create(request.plan, request.recipe, request.cluster, {}, {"commit": "abc"})
    with pytest.raises(RequestError) as raised:
        start(run, request.store)
    assert str(raised.value) == (
        "old: was submitted by another version, which alone can go on with it; submit the recipe "
        "again with another --name: finished stages are reused"
    )
    assert run.supervisors() == ()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"environment": {"export": ["SOME_TOKEN", "OTHER"]}},
         "environment.export: SOME_TOKEN, OTHER"),
        ({"notify": {"webhook": "${env:SOME_TOKEN}"}}, "notify.webhook: SOME_TOKEN"),
        ({"notify": {"webhook": "${env:SOME_TOKEN}"}, "environment": {"export": ["OTHER"]}},
         "environment.export: OTHER not set here; export and try again\n"
         "cluster: notify.webhook: SOME_TOKEN"),
    ],
)  # fmt: skip
def test_variables_that_jobs_need_must_be_set(
    tmp_path: Path, settings: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SOME_TOKEN", "OTHER"):
        monkeypatch.delenv(name, raising=False)
    where = cluster(str(tmp_path), backend="local", **settings)
    store = open_store(where)
    run = RunFolder(store.run_storage("small"))
    run.create(plan_of(recipe()), recipe(), where, {}, {"format": FORMAT})
    with pytest.raises(RequestError) as raised:
        start(run, store)
    assert str(raised.value) == f"cluster: {says} not set here; export and try again"


@pytest.mark.parametrize(
    "settings",
    [
        {"environment": {"export": ["SOME_TOKEN"]}},
        {"notify": {"webhook": "${env:SOME_TOKEN}"}},
        {"notify": {"command": ["./nobody.sh"]}},
    ],
)
def test_a_run_that_would_lack_something_is_not_begun_nor_moved(
    project: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SOME_TOKEN", raising=False)
    spec = yaml.safe_load((project / "c.yaml").read_text())
    (project / "lacks.yaml").write_text(yaml.safe_dump({**spec, **settings}))
    request = prepare(project / "r.yaml", project / "lacks.yaml")
    with pytest.raises(SpecErrors, match=r"^lacks.yaml: (environment|notify)\."):
        submit(request)
    assert not request.store.runs()
    run = RunFolder(request.store.run_storage("r"))
    run.create(request.plan, request.recipe, request.cluster, {}, {"format": FORMAT})
    before = run.num_moves
    other = {**spec, **settings, "prices": {"cpu_hour": 1}}
    (project / "lacks.yaml").write_text(yaml.safe_dump(other))
    with pytest.raises(SpecErrors, match=r"^lacks.yaml: (environment|notify)\."):
        move(run, project / "lacks.yaml")
    assert run.num_moves == before


@pytest.mark.parametrize(
    ("tracking", "says"),
    [
        ({"wandb": {"project": "p"}}, "tracking.wandb.api_key: WANDB_API_KEY"),
        ({"wandb": {"project": "p", "mode": "offline", "base_url": "${env:SOME_TOKEN}"}},
         "tracking.wandb.base_url: SOME_TOKEN"),
        ({"mlflow": {"experiment": "e"}}, "tracking.mlflow.uri: MLFLOW_TRACKING_URI"),
        ({"mlflow": {"experiment": "e", "uri": "${env:HOME}", "token": "${env:SOME_TOKEN}"}},
         "tracking.mlflow.token: SOME_TOKEN"),
    ],
)  # fmt: skip
def test_variables_that_trackers_need_must_be_set(
    tmp_path: Path, tracking: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SOME_TOKEN", "WANDB_API_KEY", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    where = cluster(str(tmp_path), backend="local")
    store = open_store(where)
    run = RunFolder(store.run_storage("small"))
    asked = recipe(**{f"tracking.{name}": value for name, value in tracking.items()})
    run.create(plan_of(asked), asked, where, {}, {"format": FORMAT})
    with pytest.raises(RequestError) as raised:
        start(run, store)
    assert str(raised.value) == f"recipe: {says} not set here; export and try again"


def test_a_run_that_has_spent_what_it_may_goes_on_where_it_may_spend_more(project: Path) -> None:
    spec = yaml.safe_load((project / "c.yaml").read_text())

    def limited(max_price: float) -> Path:
        file = project / f"{max_price:g}.yaml"
        limits = {"limits": {"max_price": max_price}, "prices": {"cpu_hour": 1.0}}
        file.write_text(yaml.safe_dump({**spec, **limits}))
        return file

    request = prepare(project / "r.yaml", limited(5))
    run = RunFolder(request.store.run_storage(request.plan.run))
    run.create(request.plan, request.recipe, request.cluster, {}, {"format": FORMAT})
    corpus = request.plan.instances[0].id
    run.begin_attempt(corpus, started_at=0.0, gpus=0, price_per_h=1.0).finish(ended_at=6 * 3600.0)
    says = (
        f"{run.name}: limits.max_price: 6 of 5 USD spent; raise it, and "
        f"`orchestrator resume {run.name} --cluster FILE` goes on"
    )
    with pytest.raises(RequestError) as refused:
        start(run, request.store)
    assert str(refused.value) == says
    with pytest.raises(RequestError, match=r"limits.max_price: 6 of 5.5 USD spent"):
        move(run, limited(5.5))
    assert run.num_moves == 0
    assert move(run, limited(7)) is True


@pytest.mark.parametrize(
    ("ended", "cause", "expected"),
    [
        (None, "", True),
        ("failed", "ray_lost", True),
        ("failed", "node_lost", True),
        ("failed", "bad_data", False),
        ("cancelled", "ray_lost", False),
        ("succeeded", "ray_lost", False),
    ],
)
def test_runs_that_went_away_and_no_others_are_interrupted(
    project: Path, ended: str | None, cause: str, expected: bool
) -> None:
    request = prepare(project / "r.yaml", project / "c.yaml")
    run = RunFolder(request.store.run_storage(request.plan.run))
    run.create(request.plan, request.recipe, request.cluster, {}, {})
    assert interrupted(request.store, request.cluster) == ()
    record = run.begin_supervisor(process=Process.current().__dict__)
    if ended:
        attempt = run.begin_attempt(run.plan().leaders[0].id)
        attempt.finish(state="failed", cause=cause, action="stop", reason="")
        record.finish(state=ended, cause="", reason="")
    assert [r.name for r in interrupted(request.store, request.cluster)] == [run.name] * expected
