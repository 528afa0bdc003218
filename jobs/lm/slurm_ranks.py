"""Ranks of training started by submitit: one task per rank.

On one machine they are the tasks of a submitit LocalExecutor. In a Slurm job the driver runs on the
allocation's first node and the ranks are a step of the same allocation (``srun python -m
jobs.lm.slurm_ranks CONFIG``), so that whatever ends the job ends them too. Both read their place
from submitit's JobEnvironment and meet through a file.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from jobs.lm.rank import Place, RankConfig, failure, free_port, last_line, log_path, log_to
from orchestrator.errors import RunFailedError
from orchestrator.spec.cluster import Resources

_POLL_S = 0.2
_MEET_TIMEOUT_S = 300.0
_TIMEOUT_MIN = 60
"""submitit counts any signal within the first ten minutes of a shorter job as its timeout."""


def launch(config: RankConfig, resources: Resources) -> None:
    """Run all ranks to their end. Raises RunFailedError when any of them fails."""
    if "SLURM_JOB_ID" in os.environ:
        _launch_step(config, resources)
    else:
        _launch_local(config, resources)


def run_task(config_json: str) -> None:
    """What each task runs."""
    import submitit

    config, task = RankConfig.model_validate_json(config_json), submitit.JobEnvironment()
    place = Place(
        rank=task.global_rank,
        world_size=task.num_tasks,
        local_rank=task.local_rank,
        local_world_size=task.num_tasks // task.num_nodes,
    )
    log_to(log_path(Path(config.folder), place.rank))
    host, port = meet(Path(config.folder) / "rendezvous.json", leads=place.rank == 0)
    os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = host, str(port)
    from jobs.lm.loop import train_rank

    train_rank(config, place)


def meet(path: Path, *, leads: bool, timeout_s: float = _MEET_TIMEOUT_S) -> tuple[str, int]:
    """Where rank 0 listens: it says so in a file that the others await. Raises TimeoutError."""
    if leads:
        host = socket.gethostname() if "SLURM_JOB_ID" in os.environ else "127.0.0.1"
        aside = path.with_suffix(".tmp")
        aside.write_text(json.dumps({"host": host, "port": free_port()}))
        aside.replace(path)
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"{path}: rank 0 did not say where it listens within {timeout_s:.0f} s; see its log"
            )
        time.sleep(_POLL_S)
    said = json.loads(path.read_text())
    return said["host"], said["port"]


def _launch_local(config: RankConfig, resources: Resources) -> None:
    import submitit

    executor = submitit.LocalExecutor(folder=Path(config.folder) / "submitit")
    executor.update_parameters(
        tasks_per_node=resources.world_size,
        gpus_per_node=resources.gpus_per_node,
        timeout_min=max(_TIMEOUT_MIN, resources.walltime_min),
    )
    job = executor.submit(run_task, config.model_dump_json())
    while not job.done():
        time.sleep(_POLL_S)
    error = next((e for e in (task.exception() for task in _tasks(job)) if e), None)
    if error is not None:
        raise RunFailedError(failure(config, resources.world_size, last_line(error)))


def _tasks(job: object) -> list[object]:
    """A job of one task is its own task."""
    return getattr(job, "_sub_jobs", None) or [job]


def _launch_step(config: RankConfig, resources: Resources) -> None:
    path = Path(config.folder) / "rank_config.json"
    path.write_text(config.model_dump_json())
    done = subprocess.run([*step_command(resources), str(path)], check=False)
    if done.returncode:
        raise RunFailedError(
            failure(config, resources.world_size, f"srun ended with {done.returncode}")
        )


def step_command(resources: Resources) -> list[str]:
    """The srun command of the step, without the configuration's path."""
    per_node = resources.gpus_per_node or resources.ranks_per_node
    return [
        "srun",
        "--overlap",  # the driver's own step has the same CPUs
        "--kill-on-bad-exit=1",
        f"--nodes={resources.nodes}",
        f"--ntasks={resources.world_size}",
        f"--ntasks-per-node={per_node}",
        f"--cpus-per-task={resources.cpus_per_worker}",
        *([f"--gpus-per-node={resources.gpus_per_node}"] if resources.gpus_per_node else []),
        sys.executable,
        "-m",
        "jobs.lm.slurm_ranks",
    ]


if __name__ == "__main__":
    run_task(Path(sys.argv[1]).read_text())
