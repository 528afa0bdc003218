"""The supervisor of a run on a Ray cluster: the command of its job on the head.

What is installed there only fetches the code that was submitted with the run, and becomes that.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from orchestrator.backends.ray_session import JoinedRay
from orchestrator.control.code_snapshot import code_env, code_folder
from orchestrator.control.job import log_to_stderr, run_parser, store_and_run
from orchestrator.control.ray.idle_nodes import IdleNodes
from orchestrator.control.requirements import unfit_in_this_process
from orchestrator.control.run_logs import RunLogs
from orchestrator.control.supervisor_process import Surroundings, said, supervise
from orchestrator.errors import OrchestratorError, RequestError, SpecErrors
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.storage import Storage

MODULE = "orchestrator.control.ray.supervisor"
_IS_OWN_CODE = "ORCHESTRATOR_RUNS_OWN_CODE"
_NOT_SET = "not set on the head; set it where Ray is started there, or in environment.setup"
_NO_LIMIT = 1_000_000
"""Cores that jobs may hold together: nodes come as they are asked for."""


def of_the_cluster(run: RunFolder, own: Storage, logs: RunLogs) -> Surroundings:  # noqa: ARG001 (nothing is started here)
    """The cluster that this job is part of. Raises RequestError outside of one."""
    if not (address := os.environ.get("RAY_ADDRESS")):
        raise RequestError(f"{run.name}: RAY_ADDRESS is not set; submit it to the cluster's head")
    code = code_folder(run)
    return Surroundings(
        lambda: JoinedRay(address, code),
        on_nodes=True,
        num_cpus=_NO_LIMIT,
        tend=IdleNodes(address, run.cluster().ray),
    )


def become(argv: Sequence[str]) -> None:
    """Go on as the run's own code. Raises OrchestratorError, OSError."""
    _, run = store_and_run(run_parser(__doc__).parse_args(argv))
    run.plan()  # or there is none
    if unfit := tuple(unfit_in_this_process(run.recipe(), run.cluster(), _NOT_SET)):
        raise SpecErrors(unfit)
    env = {**os.environ, **code_env(run), _IS_OWN_CODE: "1"}
    os.execve(sys.executable, [sys.executable, "-m", MODULE, *argv], env)


def main(argv: Sequence[str] | None = None) -> int:
    """Supervise one run until it ends."""
    words = list(sys.argv[1:] if argv is None else argv)
    if _IS_OWN_CODE in os.environ:
        return supervise(words, of_the_cluster)
    log_to_stderr()
    try:
        become(words)
    except (OSError, OrchestratorError) as error:
        return said(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
