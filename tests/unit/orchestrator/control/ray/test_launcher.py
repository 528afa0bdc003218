"""Launcher files and the commands that read them."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.control.ray.launcher import (
    carry_out,
    launcher_of,
    passed_on,
    program_of,
    require_mounts,
)
from orchestrator.errors import BackendError, RequestError
from orchestrator.spec.cluster import Ray
from tests.unit.source import ROOT

CLOUD = """
cluster_name: c
provider: {type: aws}
head_node_type: h
available_node_types: {w: {}, h: {}}
file_mounts: {/a: mine, /home/u/.ray/auth_token: ~/.ray/auth_token}
"""
KUBE = """
kind: ServiceAccount
---
kind: RayCluster
metadata: {name: mine, namespace: ns}
spec: {workerGroupSpecs: [{groupName: g}]}
"""


def written(folder: Path, text: str) -> Ray:
    (folder / "l.yaml").write_text(text)
    return Ray(launcher=str(folder / "l.yaml"))


def test_a_file_of_ray_up(tmp_path: Path) -> None:
    launcher = launcher_of(written(tmp_path, CLOUD))
    file = str(tmp_path / "l.yaml")
    assert launcher.node_types == ("h", "w")
    assert launcher.up == (("ray", "up", "-y", "--log-color", "false", file),)
    assert launcher.down == ("ray", "down", "-y", "--log-color", "false", file)
    assert launcher.tunnel == ("ray", "dashboard", file, "--port", "{port}")
    assert launcher.up_restarts_ray


def test_a_ray_cluster_of_kubernetes(tmp_path: Path) -> None:
    launcher = launcher_of(written(tmp_path, KUBE))
    file = str(tmp_path / "l.yaml")
    assert launcher.node_types == ("headgroup", "g")
    apply, wait = launcher.up
    assert apply == ("kubectl", "apply", "-f", file)
    assert wait[:5] == ("kubectl", "wait", "raycluster/mine", "-n", "ns")
    assert launcher.down == ("kubectl", "delete", "--ignore-not-found", "-f", file)
    way = ("kubectl", "port-forward", "-n", "ns", "service/mine-head-svc", "{port}:8265")
    assert launcher.tunnel == way
    assert not launcher.up_restarts_ray


@pytest.mark.parametrize("name", ["aws", "gcp", "kube"])
def test_those_of_the_project(name: str) -> None:
    path = ROOT / f"cluster_configs/launchers/{name}.yaml"
    assert "gpu-spot" in launcher_of(Ray(launcher=str(path))).node_types


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "ray.launcher: {file}: is no YAML (while parsing"),
        ("a: !!python/object:os.x {}", "ray.launcher: {file}: is no YAML (could not determine"),
        ("", "ray.launcher: {file}: has no provider"),
        ("[1]", "ray.launcher: {file}: has no provider"),
        ("provider: aws", "ray.launcher: {file}: has no provider"),
        ("kind: RayJob", "ray.launcher: {file}: has no provider"),
    ],
)
def test_what_launches_nothing(tmp_path: Path, text: str, says: str) -> None:
    ray = written(tmp_path, text)
    with pytest.raises(RequestError) as raised:
        launcher_of(ray)
    assert str(raised.value).startswith(says.format(file=ray.launcher))
    assert len(str(raised.value).splitlines()) == 1


def test_no_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"ray.launcher: names no file; give the name"):
        launcher_of(Ray())
    with pytest.raises(RequestError, match=r"x.yaml: cannot be read \(No such file"):
        launcher_of(Ray(launcher=str(tmp_path / "x.yaml")))
    with pytest.raises(RequestError, match=r"cannot be read \(Is a directory\)"):
        launcher_of(Ray(launcher=str(tmp_path)))


def test_what_is_copied_to_the_nodes_must_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    launcher = launcher_of(written(tmp_path, CLOUD))
    with pytest.raises(RequestError, match=r"l.yaml: file_mounts: mine: no such file; check"):
        require_mounts(launcher)
    (tmp_path / "mine").touch()
    with pytest.raises(RequestError, match=r"~/.ray/auth_token: no such file; `ray get-auth"):
        require_mounts(launcher)
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray/auth_token").touch()
    require_mounts(launcher)


LINES = [
    "\x1b[36mCluster: c\x1b[0m\n",
    "Traceback (most recent call last):\n",
    '  File "x.py", line 1, in f\n',
    "    f()\n",
    "KeyError: 'a'\n",
    "\n",
    "During handling of the above exception, another exception occurred:\n",
    "\n",
    "Traceback (most recent call last):\n",
    '  File "x.py", line 1, in f\n',
    "boto.NoCredentialsError: Unable to locate credentials\n",
]


def test_tracebacks_are_not_passed_on_but_the_error_that_they_end_in() -> None:
    said: list[str] = []
    assert passed_on(LINES, said.append) == "boto.NoCredentialsError: Unable to locate credentials"
    assert said == ["Cluster: c"]
    assert passed_on(["one\n", "  two\n", "\n"], said.append) == "two"
    assert said[1:] == ["one", "  two"]
    assert passed_on([], said.append) == ""


def executable(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_a_command_is_carried_out_where_its_file_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    executable(tmp_path, "kubectl", 'pwd; echo "$2"; [ "$1" = apply ] || exit 4')
    said: list[str] = []
    carry_out(("kubectl", "apply", "-f"), tmp_path, said.append)
    assert said == [str(tmp_path), "-f"]
    with pytest.raises(BackendError, match=r"^kubectl delete: -f; mend it, and the same command"):
        carry_out(("kubectl", "delete", "-f"), tmp_path, said.append)
    executable(tmp_path, "kubectl", "exit 4")
    with pytest.raises(BackendError, match=r"^kubectl delete: exit 4; "):
        carry_out(("kubectl", "delete"), tmp_path, said.append)


def test_a_program_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RequestError, match=r"^kubectl: not on PATH; install it here"):
        program_of("kubectl")
    assert program_of("ray").endswith("/ray"), "it is beside this Python"
