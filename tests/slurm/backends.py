"""One run on three backends in turn: this machine, a Ray cluster, Slurm, and this machine again.

Not collected by `make test`; run by its path: ``pytest tests/slurm/backends.py``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml

from orchestrator.ledger.storage import Storage
from tests.integration.conftest import BUCKET, serving
from tests.ray_head import RayHead
from tests.slurm.cluster import SlurmCluster
from tests.slurm.rig import SlurmSmoke, wait_for
from tests.smoke import Smoke

HOPS = ("local", "ray", "slurm")
"""Where the training is until it has made some steps there."""
STEPS = 40


@pytest.fixture
def head(tmp_path: Path) -> Iterator[RayHead]:
    """A Ray cluster whose nodes come as they are asked for."""
    types = {"cpu": {"resources": {"CPU": 4}, "min_workers": 0, "max_workers": 1}}
    head = RayHead(tmp_path / "ray", num_cpus=0, node_types=types)
    head.start()
    yield head
    head.stop()


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a bucket that this process, and all that it starts, has the keys of."""
    with serving(tmp_path / "s3.log") as variables:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield f"s3://{BUCKET}"


def cluster_files(smoke: SlurmSmoke, head: RayHead, **store: str) -> dict[str, dict[str, Any]]:
    """What the cluster file says for each backend; ``store``: of this machine and of Ray."""
    of_slurm = yaml.safe_load((smoke.folder / "cluster.yaml").read_text())
    common = {k: v for k, v in of_slurm.items() if k not in ("slurm", "backend", "cpus")} | store
    return {
        "local": {**common, "backend": "local", "cpus": 4},
        "ray": {**common, "backend": "ray", "ray": {"address": head.url}},
        "slurm": of_slurm,
    }


def through_all(
    smoke: SlurmSmoke, head: RayHead, env: Mapping[str, str], **store: str
) -> tuple[SlurmSmoke, str]:
    """Have a run go through all backends, and end where it began; who looks at it, and its name."""
    env = {**env, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": head.token}
    smoke = SlurmSmoke(smoke.folder, env)
    files, backends = cluster_files(smoke, head, **store), []
    write(smoke, files["local"])
    run = smoke.submit()
    for number, name in enumerate(HOPS, 1):
        place = smoke.run(run).storage.url
        write(smoke, files[name])
        if backends:
            smoke.orchestrator("resume", place)
        await_steps(smoke, run, number)
        backends.append(smoke.status(run)["backend"])
        smoke.orchestrator("cancel", run)
    place = smoke.run(run).storage.url
    write(smoke, files["local"])
    smoke.orchestrator("resume", place, "--watch")
    assert tuple(backends) == HOPS
    assert smoke.status(run)["state"] == "succeeded"
    assert smoke.causes(run, "train") == ["cancelled", "cancelled", "cancelled", ""]
    steps = [[step["step"] for step in a.steps()] for a in smoke.attempts(run, "train")]
    print(json.dumps({"steps": [(own[0], own[-1]) for own in steps]}))
    return smoke, run


def await_steps(smoke: SlurmSmoke, run: str, number: int) -> None:
    """Wait until an attempt at the training has made some steps of its own."""
    wait_for(lambda: len(smoke.attempts(run, "train")) >= number, f"attempt {number}")
    attempt = smoke.attempts(run, "train")[number - 1]
    wait_for(lambda: list(attempt.steps())[STEPS:], f"steps of attempt {number}")


def write(smoke: Smoke, cluster: Mapping[str, Any]) -> None:
    """Write another cluster file."""
    (smoke.folder / "cluster.yaml").write_text(yaml.safe_dump(dict(cluster)))


def test_a_run_moves_over_all_backends_and_its_bytes_are_the_same(
    slurm: SlurmCluster, undisturbed: tuple[Smoke, str], smoke: SlurmSmoke, head: RayHead
) -> None:
    through_all(smoke, head, slurm.env)
    assert smoke.fingerprint() == undisturbed[0].fingerprint()


def test_a_run_in_a_bucket_moves_to_a_path_for_slurm_and_back(
    bucket: str,
    slurm: SlurmCluster,
    undisturbed: tuple[Smoke, str],
    head: RayHead,
    material: Path,
    tmp_path: Path,
) -> None:
    """From the recordings on; the bucket has what a store on a path has."""
    smoke = SlurmSmoke.on(slurm, tmp_path / "run", material)
    smoke, run = through_all(smoke, head, slurm.env, store=f"{bucket}/moves")
    artifacts, expected = Storage(f"{bucket}/moves/artifacts"), undisturbed[0].fingerprint()
    assert {path.split("/")[0] for path in expected} == {"tokenize", "pack", "train"}
    assert {path: artifacts.digest(path) for path in expected} == expected
    assert json.loads(smoke.orchestrator("verify", run, "--json").stdout)["ok"]
