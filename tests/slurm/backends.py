"""One run on three backends in turn: this machine, a Ray cluster, Slurm, and this machine again.

Not collected by `make test`; run by its path: ``pytest tests/slurm/backends.py``.
"""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from tests.ray_head import RayHead
from tests.slurm.rig import SlurmSmoke
from tests.smoke import Smoke

HOPS = (("local", 100), ("ray", 220), ("slurm", 340))
"""Where the training is, and the step beyond which it is taken away from there."""


def cluster_files(smoke: SlurmSmoke, head: RayHead) -> dict[str, str]:
    """What the cluster file says for each backend, over one store."""
    of_slurm = yaml.safe_load((smoke.folder / "cluster.yaml").read_text())
    common = {k: v for k, v in of_slurm.items() if k not in ("slurm", "backend", "cpus")}
    files = {
        "local": {**common, "backend": "local", "cpus": 4},
        "ray": {**common, "backend": "ray", "ray": {"address": head.url}},
        "slurm": of_slurm,
    }
    return {name: yaml.safe_dump(spec) for name, spec in files.items()}


def test_a_run_moves_over_all_backends_and_its_bytes_are_the_same(
    undisturbed: tuple[Smoke, str], smoke: SlurmSmoke, tmp_path: Path
) -> None:
    types = {"cpu": {"resources": {"CPU": 4}, "min_workers": 0, "max_workers": 1}}
    head = RayHead(tmp_path / "ray", num_cpus=0, node_types=types)
    head.start()
    try:
        env = {**(smoke.env or {}), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": head.token}
        smoke = SlurmSmoke(smoke.folder, env)
        files = cluster_files(smoke, head)
        cluster_file = smoke.folder / "cluster.yaml"
        cluster_file.write_text(files["local"])
        run, backends = smoke.submit(), []
        for name, step in HOPS:
            cluster_file.write_text(files[name])
            if backends:
                smoke.orchestrator("resume", run)
            smoke.await_step(run, step)
            backends.append(smoke.status(run)["backend"])
            smoke.orchestrator("cancel", run)
        cluster_file.write_text(files["local"])
        smoke.orchestrator("resume", run, "--watch")
    finally:
        head.stop()
    assert backends == ["local", "ray", "slurm"]
    assert smoke.status(run)["state"] == "succeeded"
    assert smoke.fingerprint() == undisturbed[0].fingerprint()
    print(json.dumps({"attempts": smoke.causes(run, "train")}))
