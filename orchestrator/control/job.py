"""How stages and supervisors become jobs: the exact command, environment and log.

In: a run's folder, its cluster, a stage instance. Out: a `Job` as it is sent to the backend.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.backends.base import Job
from orchestrator.errors import OrchestratorError
from orchestrator.ledger.attempt import DRIVER_LOG, AttemptFolder
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.store import Store
from orchestrator.plan.planner import Instance
from orchestrator.plan.stages import BY_NAME
from orchestrator.spec.cluster import Cluster, Environment, Resources
from orchestrator.spec.loader import resolve_env

SUPERVISOR_MODULE = "orchestrator.control.supervise"


def stage_job(
    run: RunFolder,
    store: Store,
    cluster: Cluster,
    instance: Instance,
    attempt: AttemptFolder,
    env: Mapping[str, str],
) -> Job:
    """The job of one attempt of a stage, started by this process.

    A scheduler's job has been through the environment's set-up when it starts its stage.
    """
    is_set_up = cluster.backend != "local"
    argv = (
        *(sys.executable if is_set_up else python_of(cluster), "-u", "-m"),
        BY_NAME[instance.stage].module,
        *("--store", store.storage.url, "--run", run.name),
        *("--instance", instance.id, "--attempt", str(attempt.number)),
    )
    return Job(
        name=instance.id,
        argv=argv if is_set_up else with_setup(cluster, argv),
        log=Path(attempt.storage.local_root or "", DRIVER_LOG),
        env={**code_env(run), **env},
    )


def supervisor_job(run: RunFolder, store: Store, cluster: Cluster) -> Job:
    """The job of a run's supervisor, which outlives whoever submits it."""
    argv = (
        python_of(cluster),
        "-m",
        SUPERVISOR_MODULE,
        "--store",
        store.storage.url,
        "--run",
        run.name,
    )
    return Job(
        name=run.name,
        argv=argv,
        log=Path(code_path(run)).parent / "supervisor.log",
        env=code_env(run),
        detached=True,
    )


def cpus_of(stage: str, resources: Resources) -> int:
    """CPU cores a stage's job occupies on one machine."""
    traits = BY_NAME[stage]
    workers = resources.world_size if traits.has_ranks else resources.max_workers
    return resources.cpus_per_worker * (workers if traits.uses_ray else 1)


def python_of(cluster: Cluster) -> str:
    """The interpreter that jobs run with."""
    return venv_python(cluster.environment) or sys.executable


def venv_python(environment: Environment) -> str:
    """The interpreter of the environment's venv; empty when it names none."""
    if not environment.venv:
        return ""
    venv = resolve_env(environment.venv, where="cluster: environment.venv")
    return str(Path(venv, "bin", "python"))


def with_setup(cluster: Cluster, argv: Sequence[str]) -> tuple[str, ...]:
    """The command after the environment's set-up lines; its words stay words."""
    if not cluster.environment.setup:
        return tuple(argv)
    lines = "\n".join((*cluster.environment.setup, 'exec "$@"'))
    return ("bash", "-ec", lines, "bash", *argv)


def code_env(run: RunFolder) -> dict[str, str]:
    """What makes a Python process import the run's own code, whatever folder it is started in."""
    return {"PYTHONPATH": code_path(run), "PYTHONSAFEPATH": "1"}


def code_path(run: RunFolder) -> str:
    """The folder that holds the code the jobs execute.

    Raises OrchestratorError for stores that are no path.
    """
    if run.storage.local_root is None:
        raise OrchestratorError(
            f"{run.storage.url}: jobs run their code from the store, which must be a path here"
        )
    return str(run.storage.local_root / "code")
