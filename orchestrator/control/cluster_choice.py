"""Which cluster file a command line means, and the store that it names."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from orchestrator.errors import BackendError, RequestError, os_words
from orchestrator.ledger.store import Store
from orchestrator.ledger.stuck_files import answer_within_s, require_answer
from orchestrator.spec.cluster import Cluster
from orchestrator.spec.loader import resolve_env


def choose_cluster(explicit: str | None, recipe_file: Path | None) -> tuple[Path, str]:
    """The cluster file and why it was chosen. Raises RequestError when there is none."""
    if explicit:
        return _cluster_file(Path(explicit)), "given by --cluster"
    if named := os.environ.get("ORCHESTRATOR_CLUSTER"):
        return _cluster_file(Path(named)), "named by $ORCHESTRATOR_CLUSTER"
    if os.environ.get("RAY_ADDRESS"):
        file, why = "ray.yaml", "RAY_ADDRESS is set"
    elif shutil.which("sbatch"):
        file, why = "slurm.yaml", "sbatch is on PATH"
    else:
        file, why = "local.yaml", "no RAY_ADDRESS and no sbatch here"
    beside = recipe_file.resolve().parents[1:3] if recipe_file else []
    candidates = [folder / "cluster_configs" / file for folder in (*beside, Path.cwd())]
    for path in candidates:
        if path.is_file():
            return path, why
    looked = ", ".join(str(path) for path in dict.fromkeys(candidates))
    raise RequestError(
        f"cluster: no {file} found ({why}; looked for {looked}); give --cluster FILE"
    )


def open_store(cluster: Cluster) -> Store:
    """The cluster's store, whether or not its folder is there yet.

    Raises BackendError when it cannot be used, RequestError when its URL needs a variable or it
    cannot be a folder.
    """
    url = resolve_env(cluster.store, where="cluster: store")
    if url.startswith("memory:"):
        raise RequestError(
            f"cluster: store: {url}: would end with this process; name a folder or a bucket"
        )
    store = Store.open(url)
    root = store.storage.local_root
    if root:
        require_answer(root)
        _require_folder(root)
    else:
        _require_bucket(url)
    return store


def _require_bucket(url: str) -> None:
    """Raise BackendError when a bucket does not answer while somebody waits.

    Jobs, whose store may come back, ask for longer.
    """
    from orchestrator.ledger.object_store import ObjectStore  # its library is slow to import

    part_s = answer_within_s() / 3  # for a request, then for asking again, the last in its time
    try:
        ObjectStore(url, timeout_s=part_s, deadline_s=part_s).children("")
    except OSError as error:
        raise BackendError(f"cluster: store: {os_words(error)}") from None


def _require_folder(root: Path) -> None:
    if not (found := existing(root)).is_dir():
        raise RequestError(f"cluster: store: {root}: {found} is a file; name a folder")
    if os.pathsep in str(root):  # jobs import the code that lies there, by PYTHONPATH
        raise RequestError(
            f"cluster: store: {root}: Python reads {os.pathsep} as the end of a path; "
            "name a folder without it"
        )
    for path in (root, *root.parents):
        if path.is_symlink() and not path.exists():
            raise BackendError(
                f"cluster: store: {path} leads to {path.readlink()}, which is not there; mount it, "
                "or name another folder"
            )


def existing(path: Path) -> Path:
    """The path itself, or the nearest of the folders it is to lie in that is there."""
    return next(p for p in (path, *path.parents) if p.exists())


def _cluster_file(path: Path) -> Path:
    if not path.is_file():
        raise RequestError(
            f"{path}: no such cluster file; check --cluster and $ORCHESTRATOR_CLUSTER"
        )
    return path
