"""``orchestrator cluster``: what it asks, refuses and says; its kubectl only writes down."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.cli.main import main
from orchestrator.ledger.lease import Process
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.store import Store
from tests.jobs_api import PlayedHead, playing
from tests.unit.orchestrator.control.ray.test_head import RELAY
from tests.unit.orchestrator.recipes import cluster, plan_of, recipe

KUBECTL = """#!/bin/sh
echo "$@" >> {folder}/said
case $1 in
  port-forward) [ -n "{port}" ] || {{ echo "services not found" >&2; exit 1; }}
    exec {python} {folder}/relay.py "${{3%:8265}}" {port} ;;
  {broken}) echo "the server refuses"; exit 1 ;;
esac
echo "raycluster $1"
"""
LAUNCHER = "kind: RayCluster\nmetadata: {name: m}\nspec: {workerGroupSpecs: [{groupName: gpu}]}\n"
CLUSTER = """backend: ray
store: store
ray:
  launcher: kube
  node_types:
    headgroup: {mem_gb: 8, used_for: [], min_nodes: 1, price_hour: 0.5}
    gpu: {mem_gb: 64, gpus: 8, max_nodes: 4, price_hour: 20}
"""


@dataclass
class Site:
    """A cluster file with its launcher, and what kubectl was told."""

    folder: Path

    def install(self, head: PlayedHead | None = None, broken: str = "nothing") -> None:
        port = head.url.rpartition(":")[2] if head else ""
        text = KUBECTL.format(folder=self.folder, python=sys.executable, port=port, broken=broken)
        (self.folder / "kubectl").write_text(text)
        (self.folder / "kubectl").chmod(0o755)

    def told(self) -> list[str]:
        """The first word of each call but those for a way there."""
        lines = (self.folder / "said").read_text().splitlines() if self.was_asked else []
        return [line.split()[0] for line in lines if not line.startswith("port-forward")]

    @property
    def was_asked(self) -> bool:
        return (self.folder / "said").exists()

    def cluster(self, act: str, *words: str) -> int:
        return main(["cluster", act, str(self.folder / "ray.yaml"), *words])

    def live_run(self, backend: str = "ray") -> None:
        store = Store.open(str(self.folder / "store"))
        run = RunFolder(store.run_storage("small"))
        run.create(plan_of(recipe()), recipe(), cluster(store.storage.url, backend=backend), {}, {})
        run.begin_supervisor(process=Process.current().__dict__)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "t0k3n")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "launchers").mkdir()
    (tmp_path / "launchers/kube.yaml").write_text(LAUNCHER)
    (tmp_path / "relay.py").write_text(RELAY)
    (tmp_path / "ray.yaml").write_text(CLUSTER)
    (tmp_path / "store").mkdir()
    found = Site(tmp_path)
    found.install()
    return found


@pytest.fixture
def head() -> Iterator[PlayedHead]:
    with playing() as head:
        yield head


def test_up_says_what_it_costs_and_waits_for_the_head(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    assert site.cluster("up", "--yes") == 0
    said = capsys.readouterr().err.splitlines()
    assert said[0].endswith(
        "ray.yaml: 0.50 USD an hour without work, at most 80.50 (1 headgroup, 4 gpu)"
    )
    assert said[1:3] == ["raycluster apply", "raycluster wait"]
    assert f"is up until `orchestrator cluster down {site.folder}/ray.yaml`" in said[3]
    assert site.told() == ["apply", "wait"]


def test_up_starts_nothing_where_nobody_answers(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    assert site.cluster("up") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("--yes: missing, and nobody is")
    assert site.told() == []


def test_a_command_that_fails_is_one_line(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.install(broken="wait")
    assert site.cluster("up", "--yes") == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "kubectl wait: the server refuses; mend it, and the same command goes on"


def test_down_ends_all_and_says_what_stays(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert site.cluster("down") == 0
    assert site.told() == ["delete"]
    assert f"is down; {site.folder}/store and all that is in it" in capsys.readouterr().err


def test_down_leaves_live_runs_of_the_store_alone(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    site.live_run()
    assert site.cluster("down") == 2
    assert capsys.readouterr().err == (
        "1 live run on it (small), and this ends them; `orchestrator cancel` them first, or give "
        "--force\n"
    )
    assert site.told() == []
    assert site.cluster("down", "--force") == 0
    assert site.told() == ["delete"]


def test_runs_on_other_backends_keep_nobody_from_it(site: Site) -> None:
    site.live_run(backend="local")
    assert site.cluster("down") == 0


def test_down_leaves_runs_of_other_stores_alone(
    site: Site, head: PlayedHead, capsys: pytest.CaptureFixture[str]
) -> None:
    site.install(head)
    job = {"submission_id": "far-s0001", "status": "RUNNING", "metadata": {"run": "far"}}
    head.jobs = {"far-s0001": job}
    assert site.cluster("down") == 2
    assert "1 live run on it (far)" in capsys.readouterr().err
    head.jobs["far-s0001"]["status"] = "STOPPED"
    assert site.cluster("down") == 0


def test_status_shows_nodes_and_runs(
    site: Site, head: PlayedHead, capsys: pytest.CaptureFixture[str]
) -> None:
    site.install(head)
    site.live_run()
    counts = [
        {"type": "gpu", "alive": 2, "pending": 1, "problems": ["no capacity"]},
        {"type": "headgroup", "alive": 1, "pending": 0, "problems": []},
    ]
    head.on_submit = lambda job: job.update(
        status="SUCCEEDED", logs=json.dumps({"counts": counts, "there": []})
    )
    assert site.cluster("status") == 0
    first, names, *rows = capsys.readouterr().out.splitlines()
    assert first.endswith("answers, Ray 2.60.0")
    assert names.split() == ["nodes", "alive", "pending", "most", "an", "hour"]
    assert rows[0].split() == ["gpu", "2", "1", "4", "40.00", "USD"]
    assert rows[1].split() == ["headgroup", "1", "0", "1", "0.50", "USD"]
    assert rows[2:] == ["gpu: did not come: no capacity", "live runs: small"]


def test_status_of_what_is_not_there(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert site.cluster("status") == 3
    said = capsys.readouterr()
    assert said.out == "live runs: none\n"
    assert said.err == (
        "ray.launcher: kubectl: opens no way to the cluster (services not found); see whether "
        "the cluster is up\n"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "backend: slurm\nstore: store\n",
            "ray.yaml: backend: 'slurm' has no cluster that is started from here",
        ),
        (
            "backend: local\nstore: store\n",
            "ray.yaml: backend: 'local' has no cluster that is started from here",
        ),
        (
            "backend: fake\nstore: store\n",
            "ray.yaml: backend: 'fake' has no cluster that is started from here",
        ),
        ("backend: ray\nstore: store\n", "cluster: ray.launcher: names no file; give the name"),
        (
            "backend: ray\nstore: store\nray: {launcher: eks}\n",
            "ray.launcher: {folder}/launchers/eks.yaml: cannot be read (No such file or directory)",
        ),
        (
            CLUSTER.replace("gpu:", "gpus:", 1),
            "ray.yaml: ray.node_types.gpus: kube.yaml has no such type; it has headgroup, gpu",
        ),
    ],
)
def test_what_cannot_be_started(
    site: Site, text: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (site.folder / "ray.yaml").write_text(text)
    assert site.cluster("up", "--yes") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(says.format(folder=site.folder))
    assert site.told() == []


def test_no_file_and_no_program(
    site: Site, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["cluster", "up", "no.yaml", "--yes"]) == 2
    assert capsys.readouterr().err == "no.yaml: no such cluster file; check the path\n"
    (site.folder / "bin").mkdir()
    (site.folder / "bin/stat").symlink_to("/usr/bin/stat")  # asks whether a folder answers
    monkeypatch.setenv("PATH", str(site.folder / "bin"))
    assert site.cluster("down") == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("kubectl: not on PATH; install it here")


@pytest.mark.parametrize("words", [[], ["start", "ray.yaml"], ["up"]])
def test_what_is_no_command(words: list[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["cluster", *words])
    assert raised.value.code == 2
