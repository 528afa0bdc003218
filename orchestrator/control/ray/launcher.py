"""What starts a Ray cluster: its launcher file, and the commands that read it.

In: the cluster file's ``ray.launcher``, a file for ``ray up`` or a RayCluster for ``kubectl``. Out:
command lines, and what running one says.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from orchestrator.errors import BackendError, RequestError
from orchestrator.spec.cluster import Ray

_TOKEN_REMEDY = "`ray get-auth-token --generate` makes it"
_READY_TIMEOUT_S = 900
_HEAD_GROUP = "headgroup"
"""What KubeRay calls the type of the head."""
_ON_SECOND_THOUGHT = ("During handling of the above", "The above exception was")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_SOURCE = {"ray": "pip install 'ray[default]'", "kubectl": "https://kubernetes.io/docs/tasks/tools"}


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """A launcher file that was understood."""

    path: Path
    node_types: tuple[str, ...]
    """Names of all types of nodes, the head's first."""
    up: tuple[tuple[str, ...], ...]
    """Commands that start the cluster, or change it into what the file says."""
    down: tuple[str, ...]
    """The command that ends it."""
    tunnel: tuple[str, ...]
    """The command that makes the dashboard reachable at ``{port}`` of this machine."""
    up_restarts_ray: bool
    """Whether what runs on the head is ended by ``up``."""
    mounts: tuple[str, ...] = ()
    """Files of this machine that it copies to the nodes."""


def launcher_of(ray: Ray) -> Launcher:
    """The launcher that the section names. Raises RequestError for none, and for what is none."""
    if not ray.launcher:
        raise RequestError(
            "cluster: ray.launcher: names no file; give the name of one in launchers/ beside the "
            "cluster file, such as aws"
        )
    path = Path(ray.launcher)
    for document in _documents(path):
        if document.get("kind") == "RayCluster":
            return _for_kubectl(path, document)
        if isinstance(document.get("provider"), Mapping):
            return _for_ray_up(path, document)
    raise RequestError(
        f"ray.launcher: {path}: has no provider, as a file of `ray up`, and is no RayCluster; "
        "see launchers/aws.yaml and launchers/kube.yaml"
    )


def require_mounts(launcher: Launcher) -> None:
    """Raise RequestError where a file is missing that the launcher copies to the nodes."""
    for mount in launcher.mounts:
        if not (launcher.path.parent / Path(mount).expanduser()).exists():
            remedy = _TOKEN_REMEDY if mount.endswith("auth_token") else "check the path"
            raise RequestError(
                f"{launcher.path.name}: file_mounts: {mount}: no such file; {remedy}"
            )


def carry_out(argv: Sequence[str], folder: Path, say: Callable[[str], None]) -> None:
    """Run a command there, and pass on what it says. Raises RequestError, BackendError."""
    program = program_of(argv[0])
    with subprocess.Popen(
        [program, *argv[1:]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=folder,
        env={**os.environ, "RAY_UP_enable_autoscaler_v2": "1"},
    ) as process:
        assert process.stdout
        last = passed_on(process.stdout, say)
    if process.returncode:
        raise BackendError(
            f"{argv[0]} {argv[1]}: {last or f'exit {process.returncode}'}; mend it, and the same "
            "command goes on"
        )


def program_of(name: str) -> str:
    """The path of ``ray`` or ``kubectl``. Raises RequestError where it is not installed."""
    beside_python = shutil.which(name, path=str(Path(sys.executable).parent))
    if found := shutil.which(name) or beside_python:
        return found
    raise RequestError(f"{name}: not on PATH; install it here ({_SOURCE[name]})")


def passed_on(lines: Iterable[str], say: Callable[[str], None]) -> str:
    """Pass on all but Python's tracebacks; the last line, or the error that one ended in."""
    last, is_traceback = "", False
    for line in (_COLOUR.sub("", raw).rstrip() for raw in lines):
        if line.startswith("Traceback (most recent call last)"):
            is_traceback = True
        elif not line or line.startswith(_ON_SECOND_THOUGHT) or (is_traceback and line[0] == " "):
            continue
        elif is_traceback:
            last, is_traceback = line, False
        else:
            say(line)
            last = line.strip()
    return last


def _documents(path: Path) -> list[Mapping[str, Any]]:
    try:
        found = list(yaml.safe_load_all(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise RequestError(
            f"ray.launcher: {path}: cannot be read ({error.strerror}); check the name"
        ) from None
    except (yaml.YAMLError, ValueError) as error:
        what = " ".join(str(error).split())
        raise RequestError(f"ray.launcher: {path}: is no YAML ({what}); mend it") from None
    return [document for document in found if isinstance(document, Mapping)]


def _for_ray_up(path: Path, document: Mapping[str, Any]) -> Launcher:
    head = str(document.get("head_node_type", ""))
    types = dict.fromkeys((head, *(document.get("available_node_types") or {})))
    file = str(path)
    return Launcher(
        path=path,
        node_types=tuple(t for t in types if t),
        up=(("ray", "up", "-y", "--log-color", "false", file),),
        down=("ray", "down", "-y", "--log-color", "false", file),
        tunnel=("ray", "dashboard", file, "--port", "{port}"),
        up_restarts_ray=True,
        mounts=tuple(map(str, (document.get("file_mounts") or {}).values())),
    )


def _for_kubectl(path: Path, document: Mapping[str, Any]) -> Launcher:
    metadata = document.get("metadata") or {}
    name = str(metadata.get("name", ""))
    where = ("-n", str(metadata["namespace"])) if metadata.get("namespace") else ()
    groups = (document.get("spec") or {}).get("workerGroupSpecs") or ()
    ready = ("--for=condition=HeadPodReady", f"--timeout={_READY_TIMEOUT_S}s")
    return Launcher(
        path=path,
        node_types=(_HEAD_GROUP, *(str(group.get("groupName")) for group in groups)),
        up=(
            ("kubectl", "apply", "-f", str(path)),
            ("kubectl", "wait", f"raycluster/{name}", *where, *ready),
        ),
        down=("kubectl", "delete", "--ignore-not-found", "-f", str(path)),
        tunnel=("kubectl", "port-forward", *where, f"service/{name}-head-svc", "{port}:8265"),
        up_restarts_ray=False,
    )
