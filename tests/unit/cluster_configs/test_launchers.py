"""Launcher files: what Ray's and KubeRay's schemas let pass, and rules of our own."""

from __future__ import annotations

import copy
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator, Draft202012Validator

from orchestrator.spec.cluster import NodeType
from orchestrator.spec.loader import load_cluster
from tests.unit.source import ROOT

FOLDER = ROOT / "cluster_configs/launchers"
CLOUDS = ("aws", "gcp")
ALL = (*CLOUDS, "kube")
GB = 10**9
KEYS = re.compile(
    r"AKIA|aws_secret|private_key_id|BEGIN .*PRIVATE|auth_token:\s*['\"]?[0-9a-f]{16}"
)


@cache
def launcher(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    return loaded


@cache
def node_types(name: str) -> dict[str, NodeType]:
    return load_cluster(FOLDER.parent / f"ray-{name}.yaml").ray.node_types


def ray_schema() -> Draft7Validator:
    """That of the wheel, which is not imported."""
    found = importlib.util.find_spec("ray")
    assert found is not None
    assert found.origin is not None
    path = Path(found.origin).parent / "autoscaler/ray-schema.json"
    return Draft7Validator(json.loads(path.read_text()))


def kuberay_schema() -> Draft202012Validator:
    return Draft202012Validator(
        json.loads((ROOT / "tests/data/raycluster.schema.json").read_text())
    )


def groups(name: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each type of worker, as the launcher file has it."""
    found = launcher(name)
    if name == "kube":
        yield from ((g["groupName"], g) for g in found["spec"]["workerGroupSpecs"])
        return
    types = found["available_node_types"].items()
    yield from ((n, t) for n, t in types if n != found["head_node_type"])


def has_gpus(group: Mapping[str, Any]) -> bool:
    return "GPU" in group.get("resources", {}) or "num-gpus" in group.get("rayStartParams", {})


def is_spot(group: Mapping[str, Any]) -> bool:
    return bool(re.search(r"MarketType.*spot|provisioningModel.*SPOT|gke-spot", json.dumps(group)))


@pytest.mark.parametrize("name", CLOUDS)
def test_ray_takes_them(name: str) -> None:
    assert [e.message for e in ray_schema().iter_errors(launcher(name))] == []
    misspelt = {**launcher(name), "setup_command": []}
    assert list(ray_schema().iter_errors(misspelt))


def test_kuberay_takes_it() -> None:
    assert [e.message for e in kuberay_schema().iter_errors(launcher("kube"))] == []
    misspelt = copy.deepcopy(launcher("kube"))
    misspelt["spec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["img"] = "x"
    assert list(kuberay_schema().iter_errors(misspelt))


@pytest.mark.parametrize("name", ALL)
def test_types_are_those_of_the_cluster_file(name: str) -> None:
    ours, theirs = node_types(name), dict(groups(name))
    head = "headgroup" if name == "kube" else "head"  # as KubeRay calls it
    assert list(ours) == [head, *theirs]
    for node_type, group in theirs.items():
        asked = ours[node_type]
        if name == "kube":
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            has_bytes = int(limits["memory"].removesuffix("Gi")) * 2**30
            cpus, gpus = (int(group["rayStartParams"].get(f"num-{k}", 0)) for k in ("cpus", "gpus"))
            most, least = group["maxReplicas"], group["minReplicas"]
            assert int(limits.get("nvidia.com/gpu", 0)) == gpus
        else:
            has = group["resources"]
            cpus, gpus, has_bytes = has["CPU"], has.get("GPU", 0), has["memory"]
            most, least = group["max_workers"], group["min_workers"]
        assert (asked.cpus, asked.gpus, asked.max_nodes, asked.min_nodes) == (
            cpus,
            gpus,
            most,
            least,
        )
        assert 0.99 * has_bytes < asked.mem_gb * GB <= has_bytes
        assert asked.labels == group["labels"]
        assert asked.spot == is_spot(group)
        assert asked.spot == (group["labels"]["ray.io/market-type"] == "spot")


@pytest.mark.parametrize("name", ALL)
def test_on_demand_nodes_stand_behind_spot_ones(name: str) -> None:
    with_gpus = {n: g for n, g in groups(name) if has_gpus(g)}
    spot, on_demand = sorted(with_gpus.values(), key=is_spot, reverse=True)
    assert is_spot(spot)
    assert not is_spot(on_demand)
    assert spot["priority"] > on_demand["priority"]
    assert [n for n, g in groups(name) if not has_gpus(g)] == ["cpu-data"]


@pytest.mark.parametrize("name", CLOUDS)
def test_the_head_of_a_cloud(name: str) -> None:
    found = launcher(name)
    head = found["available_node_types"]["head"]
    assert not is_spot(head)
    assert head["resources"]["CPU"] == 0
    *_, start, resume = found["head_start_ray_commands"]
    assert "RAY_AUTH_MODE=token" in start
    for option in ("--num-cpus=0", "--num-gpus=0", "--dashboard-host=127.0.0.1"):
        assert option in start.split()
    assert "RAY_ADDRESS=auto ~/venv/bin/orchestrator resume --interrupted --cluster" in resume
    assert all("RAY_AUTH_MODE=token" in c for c in found["worker_start_ray_commands"][1:])
    assert found["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("-c requirements.lock" in command for command in found["setup_commands"])
    assert found["idle_timeout_minutes"] > 0


@pytest.mark.parametrize("name", CLOUDS)
def test_what_a_cloud_is_given_is_there(name: str) -> None:
    mounts = launcher(name)["file_mounts"]
    for path in (mount for mount in mounts.values() if not mount.startswith("~")):
        assert (FOLDER / path).exists(), path
    assert mounts["/home/ubuntu/cluster.yaml"] == f"../ray-{name}.yaml"
    cluster = load_cluster(FOLDER.parent / f"ray-{name}.yaml")
    assert cluster.environment.venv == "/home/ubuntu/venv"


def test_the_head_on_kubernetes() -> None:
    spec = launcher("kube")["spec"]
    head = spec["headGroupSpec"]
    params = head["rayStartParams"]
    assert (params["num-cpus"], params["dashboard-host"]) == ("0", "127.0.0.1")
    assert spec["authOptions"] == {"mode": "token", "secretName": "orchestrator-token"}
    assert spec["enableInTreeAutoscaling"]
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["autoscalerOptions"]["idleTimeoutSeconds"] > 0
    hook = head["template"]["spec"]["containers"][0]["lifecycle"]["postStart"]["exec"]["command"][
        -1
    ]
    assert "RAY_ADDRESS=auto orchestrator resume --interrupted --cluster" in hook
    assert hook.endswith("&"), "or the head is not ready before its runs are"


@pytest.mark.parametrize("name", ALL)
def test_buckets_are_reached_by_roles_and_no_key_is_written_down(name: str) -> None:
    text = (FOLDER / f"{name}.yaml").read_text()
    assert not KEYS.search(text)
    for node_type, group in groups(name):
        words = json.dumps(group)
        assert re.search("IamInstanceProfile|serviceAccount", words), node_type


@pytest.mark.parametrize("name", ALL)
def test_the_version_of_ray_is_that_of_the_lock(name: str) -> None:
    lock = (ROOT / "requirements.lock").read_text()
    pinned = re.search(r"^ray(?:\[.*\])?==(\S+)$", lock, re.MULTILINE)
    assert pinned
    for said in re.findall(
        r"rayVersion: (\S+)|rayproject/ray:([0-9.]+)", (FOLDER / f"{name}.yaml").read_text()
    ):
        assert pinned[1] in said


@pytest.mark.parametrize("name", ALL)
def test_each_stage_has_a_type_of_node(name: str) -> None:
    cluster = load_cluster(FOLDER.parent / f"ray-{name}.yaml")
    assert cluster.store.startswith(("s3://", "gs://"))
    for stage, asked in cluster.resources.items():
        use = "training" if stage == "train" else "data"
        fits = [
            t
            for t in cluster.ray.node_types.values()
            if use in t.used_for
            and t.gpus >= asked.gpus_per_node
            and t.cpus >= asked.cpus_per_worker * max(1, asked.gpus_per_node)
        ]
        assert fits, stage
