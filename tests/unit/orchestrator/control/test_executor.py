"""Which executor a backend has, and that another is one package and one line of the registry."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator.backends.base import Shape
from orchestrator.cli.main import main
from orchestrator.control.executor import (
    EXECUTORS,
    Check,
    Executor,
    JobPreview,
    Request,
    Started,
    executor_of,
    observe_all,
    require_submittable,
)
from orchestrator.control.request import prepare, submit
from orchestrator.control.requirements import missing
from orchestrator.errors import RequestError
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.status import Observed
from orchestrator.ledger.store import Store
from orchestrator.spec.cluster import Cluster
from orchestrator.spec.loader import load_cluster
from tests.unit.orchestrator.recipes import cluster, plan_of, recipe


class ToyExecutor(Executor):
    """A backend of which nothing else in the program knows."""

    asked: list[str] = []  # noqa: RUF012 (each call makes another executor)
    is_alive = True

    def start(self, run: RunFolder, store: Store) -> Started:  # noqa: ARG002
        self.asked.append(f"start {run.name}")
        return Started(outcome="started", num_jobs=3)

    def observe(self, runs: Sequence[RunFolder]) -> dict[str, Observed]:
        self.asked.append(f"observe {len(runs)}")
        return {run.name: Observed(is_alive=self.is_alive, look_every_s=0.01) for run in runs}

    def cancel(self, run: RunFolder, stage: str | None) -> None:
        self.asked.append(f"cancel {run.name} {stage}")

    def problems(self, request: Request) -> Iterator[str]:
        if request.cluster.cpus == 7:
            yield "toys have no seven cores; take six"

    def checks(self, cluster: Cluster) -> Iterator[Check]:
        yield Check("toy box", True, f"{cluster.cpus} toys")

    def preview(self, request: Request) -> Sequence[JobPreview]:
        last = request.plan.leaders[-1]
        shape = Shape(num_nodes=2, cpus=5, mem_gb=3.5, walltime_min=90)
        job = JobPreview(name="toy", instance=last.id, shape=shape, queue="box", script="play\n")
        return (job,)


@pytest.fixture
def toy() -> Iterator[type[ToyExecutor]]:
    """The one line, taken back at the end."""
    EXECUTORS["fake"] = f"{__name__}:ToyExecutor"
    ToyExecutor.asked.clear()
    ToyExecutor.is_alive = True
    yield ToyExecutor
    del EXECUTORS["fake"]


@pytest.fixture
def words(project: Path) -> list[str]:
    """A recipe on a cluster with this backend."""
    spec = yaml.safe_load((project / "c.yaml").read_text())
    (project / "c.yaml").write_text(yaml.safe_dump({**spec, "backend": "fake", "cpus": 6}))
    return [str(project / "r.yaml"), "--cluster", str(project / "c.yaml")]


def test_every_backend_of_a_cluster_file_has_an_executor() -> None:
    backends = Cluster.model_json_schema()["properties"]["backend"]["enum"]
    assert set(EXECUTORS) < set(backends)
    for backend in backends:
        executor = executor_of(cluster("/store", backend=backend))
        assert (type(executor) is Executor) == (backend == "fake")


def test_what_can_only_be_planned_for_says_so(tmp_path: Path) -> None:
    where = cluster(str(tmp_path), backend="fake")
    run = RunFolder(Store.open(str(tmp_path)).run_storage("small"))
    run.create(plan_of(recipe()), recipe(), where, {}, {})
    message = (
        "cluster: backend: 'fake' can be planned for but not submitted to; use local, slurm, ray"
    )
    for refuse in (
        lambda: require_submittable(where),
        lambda: executor_of(where).start(run, Store.open(str(tmp_path))),
        lambda: executor_of(where).cancel(run, None),
    ):
        with pytest.raises(RequestError) as raised:
            refuse()
        assert str(raised.value) == message
    require_submittable(cluster(str(tmp_path), backend="local"))


def test_a_toy_backend_is_submitted_to(
    toy: type[ToyExecutor], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    request = prepare(Path(words[0]), Path(words[2]))
    submitted = submit(request)
    assert (submitted.is_new, submitted.started.num_jobs) == (True, 3)
    assert toy.asked == [f"start {submitted.run.name}"]
    assert main(["submit", *words]) == 0
    printed = capsys.readouterr()
    assert printed.err.splitlines()[-1] == (
        f"run {submitted.run.name}: attached to what is there; 3 jobs submitted"
    )
    assert main(["cancel", submitted.run.name, *words[1:]]) == 0
    assert toy.asked[-1] == f"cancel {submitted.run.name} None"


@pytest.mark.parametrize(
    "changed", [{"cpus": 4}, {"environment": {"setup": ["true"]}}, {"retry": {"notice_s": 7}}]
)
def test_a_run_that_nobody_works_at_takes_the_cluster_file_that_is_given_now(
    toy: type[ToyExecutor],
    words: list[str],
    changed: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As where the first one named a head that does not answer."""
    run = submit(prepare(Path(words[0]), Path(words[2]))).run
    before = run.cluster()
    file = Path(words[2])
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **changed}))
    assert main(["submit", *words]) == 0
    assert "is at work with the cluster file that it has" in capsys.readouterr().err
    assert run.cluster() == before
    toy.is_alive = False
    assert main(["submit", *words]) == 0
    assert capsys.readouterr().err.splitlines()[-2:] == [
        f"run {run.name}: moves to {file}",
        f"run {run.name}: attached to what is there; 3 jobs submitted",
    ]
    assert run.cluster() == load_cluster(file)


def test_a_toy_backend_says_what_it_lacks(
    toy: type[ToyExecutor],
    words: list[str],
) -> None:
    assert missing(prepare(Path(words[0]), Path(words[2]))) == []
    spec = yaml.safe_load(Path(words[2]).read_text())
    Path(words[2]).write_text(yaml.safe_dump({**spec, "cpus": 7}))
    lacking = missing(prepare(Path(words[0]), Path(words[2])))
    assert lacking == ["toys have no seven cores; take six"]


def test_a_toy_backends_jobs_are_planned_and_its_checks_made(
    toy: type[ToyExecutor],
    words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["plan", *words, "--scripts"]) == 0
    assert capsys.readouterr().out == "# ==> toy <==\nplay\n"
    assert main(["plan", *words]) == 0
    (row,) = [r for r in capsys.readouterr().out.splitlines() if r.startswith("toy ")]
    assert row.split() == ["toy", "2", "5", "CPUs,", "3.5", "GB", "1", "h", "30", "min", "box"]
    main(["doctor", *words[1:]])
    assert "ok    toy box: 6 toys" in capsys.readouterr().out


def test_each_backend_is_asked_once_about_all_of_its_runs(
    toy: type[ToyExecutor], tmp_path: Path
) -> None:
    store = Store.open(str(tmp_path))
    runs = [RunFolder(store.run_storage(name)) for name in ("a", "b", "c")]
    for run, backend in zip(runs, ("fake", "local", "fake"), strict=True):
        run.create(plan_of(recipe()), recipe(), cluster(str(tmp_path), backend=backend), {}, {})
    observed = observe_all(runs)
    assert {name: o.is_alive for name, o in observed.items()} == {"a": True, "b": False, "c": True}
    assert toy.asked == ["observe 2"]


def test_scripts_are_for_schedulers(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *words, "--scripts"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "--scripts: c.yaml is for fake, which is given no scripts; "
        "use the cluster file of a scheduler"
    )
