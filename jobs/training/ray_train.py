"""Ranks of training placed by Ray Train, never restarted by it.

Where the worker's node has a standby, that forks the rank and the worker waits for it, which takes
no imports; elsewhere the worker itself is the rank.
"""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from jobs.ray_session import session
from jobs.training.forked_rank import fork_rank
from jobs.training.process_ranks import end_of, rank_env, train_here
from jobs.training.rank import (
    RankConfig,
    RankInfo,
    failure,
    failure_recorded,
    free_port,
    last_line,
)
from orchestrator.errors import Cause, RunFailedError
from orchestrator.ledger.run import STANDBY
from orchestrator.spec.cluster import Resources


def launch(
    config: RankConfig,
    resources: Resources,
    *,
    ray_address: str,
    selectors: Sequence[Mapping[str, str]],
) -> None:
    """Run all ranks to their end, on the Ray cluster at an address or on one of our own.

    ``selectors``: labels of the nodes that each may be on, as Ray selects by them; empty for all.
    Raises RunFailedError when any of them fails.
    """
    from ray.train.v2.api.exceptions import TrainingFailedError

    # Ray would hide the GPUs from workers that ask for none, and move workers out of our folder.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    # How soon a dead rank is noticed; nothing else waits for it, as nothing is reported to Ray.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    num_cpus = resources.world_size * resources.cpus_per_worker
    with (
        tempfile.TemporaryDirectory() as records,
        session(ray_address, num_cpus, log_to_driver=False),
    ):
        try:
            _trainer(config, resources, records, selectors).fit()
        except TrainingFailedError as error:
            raise failure(config, resources.world_size, failed_ranks(error)) from None


def per_rank(resources: Resources) -> dict[str, float]:
    """What one rank asks of Ray."""
    gpu = {"GPU": 1} if resources.gpus_per_node else {}
    return {"CPU": resources.cpus_per_worker, **gpu}


def _trainer(
    config: RankConfig, resources: Resources, records: str, selectors: Sequence[Mapping[str, str]]
) -> Any:
    """A trainer that keeps its own records in a local folder.

    Its controller runs on the driver's node, and nothing is reported to it. In the store they would
    go through pyarrow, which does not know every kind of store.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    from jobs.training.ray_backend import SharedDevicesConfig

    standby = os.environ.get(STANDBY, "")
    return DataParallelTrainer(
        run_in_worker,
        train_loop_config={"config": config.model_dump_json(), "standby": standby},
        scaling_config=ScalingConfig(
            num_workers=resources.world_size,
            use_gpu=config.device == "cuda",
            # Its types are those of version 1 of Ray Train, which had no such option.
            label_selector=[dict(s) for s in selectors] or None,  # type: ignore[call-arg]
            resources_per_worker=per_rank(resources),
        ),
        backend_config=SharedDevicesConfig(),
        run_config=RunConfig(
            name=f"a{config.lease_n:04d}",
            storage_path=records,
            failure_config=FailureConfig(max_failures=0),  # only the supervisor retries
        ),
    )


def run_in_worker(loop_config: dict[str, str]) -> None:
    """What each Ray Train worker runs. Raises RunFailedError for a rank that was forked."""
    from ray.train import get_context

    context, config_json = get_context(), loop_config["config"]
    rank_info = RankInfo(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        local_rank=context.get_local_rank(),
        local_world_size=context.get_local_world_size(),
    )
    os.environ.update(_address_of_first(rank_info.rank))
    env = {**os.environ, **rank_env(rank_info)}
    config = RankConfig.model_validate_json(config_json)
    if not (forked := fork_rank(config_json, env, loop_config["standby"])):
        _train_here(config, rank_info)
    elif code := forked.wait():
        _fail(config, rank_info, code)


def _fail(config: RankConfig, rank_info: RankInfo, code: int) -> None:
    """Raises RunFailedError; for one that a signal ended it leaves a report."""
    lost = code < 0
    error = RunFailedError(end_of(code), cause=Cause.WORKER_LOST if lost else Cause.ERROR)
    with failure_recorded(config, rank_info) if lost else nullcontext():
        raise error


def _address_of_first(rank: int) -> dict[str, str]:
    """Where rank 0 listens, as torch reads it; a collective call."""
    import ray
    from ray.train.collective import broadcast_from_rank_zero

    address = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # Ray has no types for it
    here = {"MASTER_ADDR": address, "MASTER_PORT": str(free_port())}
    told: dict[str, str] = broadcast_from_rank_zero(here if rank == 0 else None)
    return told


def _train_here(config: RankConfig, rank_info: RankInfo) -> None:
    try:
        train_here(config, rank_info)
    except BaseException:
        traceback.print_exc()  # Ray carries it to the driver and leaves nothing in our log
        raise


def failed_ranks(error: Exception) -> str:
    """Which ranks failed, each by the last line of what it raised."""
    failures = getattr(error, "worker_failures", None) or {}
    reasons = [f"rank {rank}: {last_line(reason)}" for rank, reason in sorted(failures.items())]
    return "; ".join(reasons) or last_line(error)
