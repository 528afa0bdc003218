"""The driver side of any training stage: ranks are launched, watched, and asked to save in time.

The way of a warning: the scheduler's signal reaches the supervisor (`orchestrator.control`), which
sends SIGTERM to this driver (`jobs.attempt` raises StopRequestedError); `run_monitored` writes an
order into the attempt's folder (`jobs.training.monitor`), where every rank's heartbeat finds it;
after the next step the ranks agree to save and leave (`jobs.training.loop`), and this driver waits
until they have.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs.attempt import Attempt, StopRequestedError
from jobs.training import process_ranks, ray_train
from jobs.training.monitor import RankMonitor
from jobs.training.placement import Place
from jobs.training.rank import RankConfig, TrainingSettings
from jobs.training.tracker_processes import tracked
from orchestrator.errors import DEVICE_OOM, HOST_OOM, Cause, RequestError, RunFailedError
from orchestrator.ledger import checkpoints, extension
from orchestrator.ledger.extension import Length
from orchestrator.ledger.lease import Process
from orchestrator.ledger.storage import to_json
from orchestrator.spec.cluster import Resources, Retry
from orchestrator.spec.loader import resolve_env
from orchestrator.spec.model import Spec
from orchestrator.spec.recipe import Execution

FITS = f"{checkpoints.NOTES}/fits.json"
"""In the train artifact: what was found to fit the devices' memory."""
USUAL_MTBF_DEVICE_H = 45_600
MIN_INTERRUPTIONS = 3
"""Fewer say little of how often the machines fail."""
_POLL_S = 0.5

log = logging.getLogger(__name__)


def train(
    attempt: Attempt,
    config: RankConfig,
    too_large: str,
    place: Place,
) -> dict[str, Any]:
    """Train to the last step, from the newest checkpoint where there is one; the artifact's facts.

    ``too_large`` ends the message of a sample that does not fit the device's memory. Raises
    RunFailedError, LeaseHeldError, StopRequestedError; RequestError for such a sample.
    """
    extend(attempt, config)
    with halving_on_oom(attempt, config, too_large), tracked(attempt, config):
        monitor = RankMonitor(attempt, config, attempt.resources.world_size, grows=place.grows)
        run_monitored(lambda: launch(config, attempt, place), monitor, config.notice_s)
    monitor.report()
    if monitor.stopped():
        raise StopRequestedError  # the ranks were warned, and nobody warned us
    facts: dict[str, Any] = attempt.out.read_json("training.json")
    return {**facts, "final": last_losses(attempt)}


def extend(attempt: Attempt, config: RankConfig) -> None:
    """Begin a new training with the steps of one of another length, where the store has such."""
    settings = config.settings
    length = Length(
        steps=settings.steps,
        validate_every_steps=settings.validate_every_steps,
        zero_stage=config.execution.zero_stage,
    )
    chosen = extension.extend(
        attempt.artifacts[0],
        length,
        lease_n=attempt.lease_n,
        scratch=Path(config.scratch) / "extended",
        refused=lambda other, why: attempt.event("not_extended", **other.about, reason=why),
    )
    if chosen:
        attempt.event("extended", **chosen.about)
        log.info("goes on from step %d of %s", chosen.manifest.step, chosen.origin)


def rank_config(
    attempt: Attempt,
    *,
    task: str,
    spec: Spec,
    settings: TrainingSettings,
    execution: Execution,
    section: str,
) -> RankConfig:
    """Everything that the ranks of this attempt need to know."""
    resources, retry = attempt.resources, attempt.cluster.retry
    return RankConfig(
        task=task,
        spec=spec.model_dump(mode="json"),
        settings=settings,
        execution=execution,
        section=section,
        out_url=attempt.out.url,
        lease_n=attempt.lease_n,
        folder=str(attempt.folder.resolve()),
        record_url=attempt.record.storage.url,
        scratch=scratch(attempt),
        tracker=checkpoints.curves_id(attempt.out),
        device="cuda" if resources.gpus_per_node else "cpu",
        threads=resources.cpus_per_worker,
        mtbf_s=mtbf_s(retry, resources, *attempt.interruptions),
        wait_s=retry.start_timeout_s + retry.hang_timeout_s,
        notice_s=retry.notice_s,
        driver=Process.current(),
    )


def max_micro_batch(attempt: Attempt) -> int | None:
    """The largest micro-batch that an earlier attempt found to fit; None when nothing is known."""
    if not attempt.out.exists(FITS):
        return None
    return int(attempt.out.read_json(FITS)["max_micro_batch"])


def launch(config: RankConfig, attempt: Attempt, place: Place) -> None:
    """Run all ranks to their end with the cluster's launcher. Raises RunFailedError."""
    if attempt.cluster.rank_launcher == "ray_train":
        ray_train.launch(
            config,
            attempt.resources,
            ray_address=attempt.ray_address,
            selectors=place.selectors,
        )
    else:
        process_ranks.launch(config, attempt.resources, attempt.event)


def scratch(attempt: Attempt) -> str:
    """A folder on each node's own disk, the same for all attempts at this key."""
    base = attempt.cluster.scratch
    folder = Path(resolve_env(base, where="cluster: scratch") if base else tempfile.gettempdir())
    # Stores that are apart may be worked for on the same node.
    store = hashlib.sha256(attempt.out.url.encode()).hexdigest()[:12]
    return str(folder / f"orchestrator-{store}")


def mtbf_s(retry: Retry, resources: Resources, interruptions: int, lasted_s: float) -> float:
    """Mean time between failures of the whole training, in seconds: configured, observed, or usual.

    Usual: 466 interruptions in 54 days on 16,384 accelerators (arXiv 2407.21783, section 3.3.4),
    which is one in 45,600 accelerator hours.
    """
    if retry.mtbf_h:
        return retry.mtbf_h * 3600
    if interruptions >= MIN_INTERRUPTIONS:
        return lasted_s / interruptions
    return USUAL_MTBF_DEVICE_H * 3600 / resources.world_size


@contextmanager
def halving_on_oom(attempt: Attempt, config: RankConfig, too_large: str) -> Iterator[None]:
    """Remember that the device's memory was too small, so that the next attempt uses less of it.

    Raises RequestError when a single sample does not fit.
    """
    try:
        yield
    except RunFailedError as error:
        said = re.search(DEVICE_OOM, str(error)) and not re.search(HOST_OOM, str(error))
        if error.cause is not Cause.DEVICE_OOM and not said:
            raise
        micro_batch = config.execution.micro_batch
        if micro_batch == 1:
            raise RequestError(f"{config.section}{too_large}") from error
        attempt.out.replace(FITS, to_json({"max_micro_batch": micro_batch // 2}))
        attempt.event("device_oom", micro_batch=micro_batch)
        error.cause = Cause.DEVICE_OOM
        raise


def run_monitored(launch_ranks: Callable[[], None], monitor: RankMonitor, grace_s: float) -> None:
    """Run a blocking launch beside the monitor; when it ends, ranks save first.

    Launchers block for hours, and some of them in code that no signal interrupts, so they get a
    thread of their own and this one stays free for signals.
    """
    launched = _in_thread(launch_ranks)
    try:
        while not wait([launched], _POLL_S).done:
            monitor.look()
    except RunFailedError:
        raise  # a hang: nobody is there to be asked
    except BaseException:
        monitor.ask_to_stop()
        wait([launched], grace_s)
        monitor.report()
        raise
    launched.result()


def _in_thread(function: Callable[[], None]) -> Future[None]:
    """The end of a function that a daemon thread runs.

    Not the thread itself: one whose ``join`` a signal has interrupted is taken for dead before
    Python 3.13 (cpython issue 90882), and ranks that are saving would be left alone.
    """
    end: Future[None] = Future()

    def run() -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001 (raised in the thread that waits)
            end.set_exception(error)
        else:
            end.set_result(None)

    threading.Thread(target=run, daemon=True).start()
    return end


def last_losses(attempt: Attempt) -> dict[str, float]:
    """The last training and validation loss, in nats per token."""
    losses = {}
    for name in ("metrics", "validation"):
        lines = attempt.out.read_bytes(f"{name}.jsonl").splitlines()
        if lines:
            losses[f"{name}_loss"] = json.loads(lines[-1])["loss"]
    return losses
