"""Whether this machine and this cluster can do what a run will ask of them."""

from __future__ import annotations

import importlib.metadata
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from orchestrator.control.check import Check, guarded
from orchestrator.control.submit import num_gpus, open_store
from orchestrator.errors import AlreadyExistsError
from orchestrator.quantities import format_bytes
from orchestrator.spec.cluster import Cluster
from orchestrator.spec.loader import resolve_env

MIN_FREE_BYTES = 5 * 10**9
MIN_OPEN_FILES = 4096


def examine(cluster: Cluster) -> Iterator[Check]:
    """Every check that makes sense for the cluster, in order."""
    yield Check(
        "python", sys.version_info >= (3, 11), f"{sys.version.split()[0]}; 3.11 or later is needed"
    )
    if cluster.backend == "local":  # elsewhere it is the nodes that need them
        yield from _packages()
    yield guarded("store", lambda: _store(cluster))
    for name, root in cluster.data.items():
        yield _optional(guarded(f"data.{name}", partial(_folder, root, f"data.{name}", None)))
    for name, folder in cluster.models.items():
        check = partial(_folder, folder, f"models.{name}", "config.json")
        yield _optional(guarded(f"models.{name}", check))
    if cluster.backend == "local":
        yield from _machine(cluster)
    if cluster.backend == "slurm":
        from orchestrator.control.slurm.doctor import examine_slurm

        yield from examine_slurm(cluster)


def _packages() -> Iterator[Check]:
    for name in ("torch", "torchaudio", "transformers", "deepspeed", "ray", "submitit"):
        try:
            yield Check(f"package {name}", True, importlib.metadata.version(name))
        except importlib.metadata.PackageNotFoundError:
            yield Check(
                f"package {name}",
                False,
                "not installed; pip install '.[jobs]' on the nodes",
            )


def _optional(check: Check) -> Check:
    """A root or model that is not here matters only to the recipes that name it."""
    return replace(check, is_optional=True)


def _store(cluster: Cluster) -> str:
    """Write, read, refuse to write twice, delete: what every artifact relies on."""
    storage = open_store(cluster).storage
    path = f"doctor/{secrets.token_hex(8)}"
    storage.create(path, b"x")
    try:
        storage.create(path, b"y")
    except AlreadyExistsError:
        if storage.read_bytes(path) != b"x":
            raise OSError(
                f"{storage.url}: a second creation changed the object; this store cannot be used"
            ) from None
    else:
        raise OSError(f"{storage.url}: creates the same object twice; this store cannot be used")
    finally:
        storage.delete(path)
    return f"{storage.url}: exclusive creation works"


def _folder(value: str, where: str, needed: str | None) -> str:
    path = Path(resolve_env(value, where=where))
    if not path.is_dir() or (needed and not (path / needed).is_file()):
        raise OSError(
            f"{path}: {f'no {needed} in it' if path.is_dir() else 'not a folder'}; check the path"
        )
    return str(path)


def _machine(cluster: Cluster) -> Iterator[Check]:
    cpus = os.cpu_count() or 1
    yield Check("cpus", (cluster.cpus or cpus) <= cpus, f"{cpus} here, {cluster.cpus or cpus} used")
    wanted = cluster.resources_of("train").gpus_per_node
    yield Check("gpus", wanted <= num_gpus(), f"{num_gpus()} here, {wanted} used by training")
    folder = Path(open_store(cluster).storage.local_root or "/")
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    yield Check("disk", free > MIN_FREE_BYTES, f"{format_bytes(free)} free at {folder}")
    open_files = os.sysconf("SC_OPEN_MAX")
    yield Check(
        "open files",
        open_files >= MIN_OPEN_FILES,
        f"{open_files}; ulimit -n {MIN_OPEN_FILES} or more",
    )
