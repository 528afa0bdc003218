"""How stages become jobs of one machine, and what processes that control a run begin with.

In: a run's folder, a stage instance and its attempt. Out: a `Job` as it is sent to the backend.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.backends.base import Job, guarded
from orchestrator.control.code_snapshot import code_env
from orchestrator.ledger.attempt import LOCAL_FOLDER, AttemptFolder
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.store import Store
from orchestrator.plan.planner import Instance
from orchestrator.plan.stages import BY_NAME
from orchestrator.spec.cluster import Cluster, Environment, Resources
from orchestrator.spec.loader import resolve_env

ON_NODE = "jobs.on_node"


def stage_job(
    run: RunFolder,
    store: Store,
    instance: Instance,
    attempt: AttemptFolder,
    *,
    log: Path,
    env: Mapping[str, str],
    cluster: Cluster | None = None,
    on_nodes: bool = False,
) -> Job:
    """The job of one attempt of a stage; ``cluster`` as `module_argv` takes it.

    ``on_nodes``: whether a stage of one process is done by a node of the Ray session.
    """
    words = ("--store", store.storage.url, "--run", run.name)
    which = ("--instance", instance.id, "--attempt", str(attempt.number))
    return Job(
        name=instance.id,
        argv=module_argv(cluster, *_driver(instance.stage, on_nodes), *words, *which),
        log=log,
        env={**code_env(run), LOCAL_FOLDER: str(log.parent), **env},
    )


def _driver(stage: str, on_nodes: bool) -> tuple[str, ...]:
    traits = BY_NAME[stage]
    return (traits.module,) if traits.uses_ray or not on_nodes else (ON_NODE, stage)


def module_argv(cluster: Cluster | None, module: str, *words: str) -> tuple[str, ...]:
    """The command that runs a module.

    ``cluster``: whose environment is set up for it; absent when this process has been through that.
    """
    argv = (python_of(cluster) if cluster else sys.executable, "-u", "-m", module, *words)
    return with_setup(cluster.environment, argv) if cluster else argv


def cpus_of(stage: str, resources: Resources) -> int:
    """CPU cores a stage's job occupies on one machine."""
    traits = BY_NAME[stage]
    workers = resources.world_size if traits.has_ranks else resources.max_workers
    return resources.cpus_per_worker * (workers if traits.uses_ray else 1)


def gpus_of(stage: str, resources: Resources) -> int:
    """Accelerators a stage's job occupies on one machine, or on all nodes of a training."""
    return resources.gpus_per_node * (resources.max_nodes if BY_NAME[stage].has_ranks else 1)


def python_of(cluster: Cluster) -> str:
    """The interpreter that jobs run with."""
    return venv_python(cluster.environment) or sys.executable


def venv_python(environment: Environment) -> str:
    """The interpreter of the environment's venv; empty when it names none."""
    if not environment.venv:
        return ""
    venv = resolve_env(environment.venv, where="cluster: environment.venv")
    return str(Path(venv, "bin", "python"))


def with_setup(environment: Environment, argv: Sequence[str]) -> tuple[str, ...]:
    """The command after the environment's set-up lines; its words stay words."""
    if not environment.setup:
        return tuple(argv)
    lines = "\n".join((*guarded(environment.setup), 'exec "$@"'))
    return ("bash", "-c", lines, "bash", *argv)


def run_parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that name a run."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--store", required=True, help="URL of the store")
    parser.add_argument("--run", required=True, help="name of the run")
    return parser


def store_and_run(options: argparse.Namespace) -> tuple[Store, RunFolder]:
    """The store and the run that the arguments name."""
    store = Store.open(options.store)
    return store, RunFolder(store.run_storage(options.run))


def log_to_stderr() -> None:
    """Write our own lines to stderr with the time, and of libraries only warnings."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    for name in ("orchestrator", "__main__"):
        logging.getLogger(name).setLevel(logging.INFO)
