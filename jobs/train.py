"""The train stage: ranks are launched, watched, and asked to save when this attempt must end."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jobs.attempt import Attempt, run_stage
from jobs.lm.rank import RankConfig, execution_of
from jobs.lm.twist import verify_weights
from orchestrator.ledger.lease import Process

GRACE_S = 90.0
"""How long ranks may take to save when asked to stop; notices are rarely longer."""
_POLL_S = 0.5


def work(attempt: Attempt) -> dict[str, Any]:
    """Train to the last step, from the newest checkpoint where there is one."""
    config = rank_config(attempt)
    verify_weights(config.model, config.source)
    watch = Watch(attempt, config)
    run_watched(lambda: launch(config, attempt), watch)
    watch.look()
    facts: dict[str, Any] = attempt.out.read_json("training.json")
    return {**facts, "final": last_losses(attempt)}


def rank_config(attempt: Attempt) -> RankConfig:
    """Everything the ranks are told. Raises RequestError when they cannot share the batch."""
    recipe, resources = attempt.recipe, attempt.resources
    source = attempt.model_source(recipe.model.text_model)
    return RankConfig(
        model=recipe.model,
        train=recipe.train,
        execution=execution_of(recipe.train, resources),
        seed=recipe.seed,
        num_units=recipe.tokenizer.num_clusters,
        source=str(Path(source).resolve()) if Path(source).is_dir() else source,
        pack_url=attempt.upstream["pack"].storage.url,
        out_url=attempt.out.url,
        lease_n=attempt.lease_n,
        folder=str(attempt.folder.resolve()),
        device="cuda" if resources.gpus_per_node else "cpu",
        threads=resources.cpus_per_worker,
        tensorboard=recipe.tracking.tensorboard,
        driver=Process.current(),
    )


def launch(config: RankConfig, attempt: Attempt) -> None:
    """Run all ranks to their end with the cluster's launcher. Raises RunFailedError."""
    if attempt.cluster.launcher == "ray_train":
        from jobs.lm import ray_train

        ray_train.launch(config, attempt.resources, ray_address=attempt.ray_address)
    else:
        from jobs.lm import slurm_ranks

        slurm_ranks.launch(config, attempt.resources)


class Watch:
    """Passes on what rank 0 says, and asks the ranks to save and leave."""

    def __init__(self, attempt: Attempt, config: RankConfig) -> None:
        self._attempt, self._config = attempt, config
        self._began = False

    def look(self) -> None:
        """Report the newest step. Raises LeaseHeldError when the right to this key is lost."""
        self._attempt.check()
        try:
            live = self._attempt.out.read_json(self._config.live_path)
        except FileNotFoundError:
            return
        if not self._began:
            self._began = True
            for problem in live["refused"]:
                self._attempt.event("checkpoint_refused", problem=problem)
            self._attempt.event("training", resumed_from=live["resumed_from"])
        self._attempt.progress(live["step"], self._config.train.steps, "steps", **live["rates"])

    def ask_to_stop(self) -> None:
        """Ask the ranks to make a checkpoint after their current step and to end."""
        self._attempt.out.replace(self._config.stop_path, b"")
        self._attempt.event("stop_asked")


def run_watched(launch_ranks: Callable[[], None], watch: Watch) -> None:
    """Run a blocking launch beside the watch; when that or a signal ends it, let ranks save first.

    Launchers block for hours, and some of them in code that no signal interrupts, so they get a
    thread of their own and this one stays free to hear.
    """
    with _in_thread(launch_ranks) as (thread, errors):
        try:
            while thread.is_alive():
                thread.join(_POLL_S)
                watch.look()
        except BaseException:
            watch.ask_to_stop()
            thread.join(GRACE_S)
            raise
    if errors:
        raise errors[0]


@contextmanager
def _in_thread(
    function: Callable[[], None],
) -> Iterator[tuple[threading.Thread, list[BaseException]]]:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001 (carried to the thread that waits)
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    yield thread, errors


def last_losses(attempt: Attempt) -> dict[str, float]:
    """The last training and validation loss, in nats per token."""
    losses = {}
    for name in ("metrics", "validation"):
        lines = attempt.out.read_bytes(f"{name}.jsonl").splitlines()
        if lines:
            losses[f"{name}_loss"] = json.loads(lines[-1])["loss"]
    return losses


if __name__ == "__main__":
    sys.exit(run_stage("train", work))
