"""Which cluster file a command line means, and the store that it names."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from orchestrator.errors import RequestError
from orchestrator.ledger.store import Store
from orchestrator.spec.cluster import Cluster
from orchestrator.spec.loader import resolve_env


def choose_cluster(explicit: str | None, recipe_file: Path | None) -> tuple[Path, str]:
    """The cluster file and why it was chosen. Raises RequestError when there is none."""
    if explicit:
        return _existing(Path(explicit)), "given by --cluster"
    if named := os.environ.get("ORCHESTRATOR_CLUSTER"):
        return _existing(Path(named)), "named by $ORCHESTRATOR_CLUSTER"
    if os.environ.get("RAY_ADDRESS"):
        file, why = "ray.yaml", "RAY_ADDRESS is set"
    elif shutil.which("sbatch"):
        file, why = "slurm.yaml", "sbatch is on PATH"
    else:
        file, why = "local.yaml", "no RAY_ADDRESS and no sbatch here"
    beside = [recipe_file.resolve().parent.parent] if recipe_file else []
    candidates = [folder / "cluster_configs" / file for folder in (*beside, Path.cwd())]
    for path in candidates:
        if path.is_file():
            return path, why
    looked = ", ".join(str(path) for path in dict.fromkeys(candidates))
    raise RequestError(
        f"cluster: no {file} found ({why}; looked for {looked}); give --cluster FILE"
    )


def open_store(cluster: Cluster) -> Store:
    """The cluster's store.

    Raises BackendError when it cannot be used, RequestError when its URL needs a variable.
    """
    return Store.open(resolve_env(cluster.store, where="cluster: store"))


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise RequestError(
            f"{path}: no such cluster file; check --cluster and $ORCHESTRATOR_CLUSTER"
        )
    return path
