"""Why a job waits, in plain words, with what its user can do about it.

In: the reason that squeue gives (its %r; squeue(1), JOB REASON CODES). Out: one sentence; nothing
for what passes by itself. No job that waits has lost anything.
"""

from __future__ import annotations

import re

LAUNCH_FAILED = "launch failed requeued held"
"""Slurm's reason for holding a job whose node could not start it: it never will by itself."""
_ANOTHER = "change the cluster file, then cancel and `orchestrator resume RUN --cluster FILE`"
_WORDS = (
    (LAUNCH_FAILED, "its node could not start it; `orchestrator resume RUN` replaces it"),
    ("JobHeldAdmin", "an administrator holds it; ask them, it starts when they release it"),
    ("JobHeldUser", "you hold it; `scontrol release {job}` lets it start"),
    (
        "requeued in held state|requeued held|JobHoldMaxRequeue|SpecialExit",
        "it was put back into the queue and is held; `scontrol release {job}` lets it start",
    ),
    (
        "maintenance",
        "its nodes are kept free for a maintenance (`scontrol show reservation`); it starts "
        "afterwards, or before it if walltime_min lets it end in time",
    ),
    (
        "ReqNodeNotAvail|NodeDown|Nodes required for job are|FrontEndDown",
        "nodes that it needs are down, drained or reserved (`sinfo -R`); it starts when they are "
        "back",
    ),
    (
        "ReservationDeleted|InvalidReservation",
        f"its reservation is gone, so that it never starts; {_ANOTHER}",
    ),
    ("Reservation", "its reservation has not begun, or is full; it starts when there is room"),
    (
        "PartitionDown|PartitionInactive",
        f"its partition starts no jobs at present; wait, or {_ANOTHER}",
    ),
    (
        "Partition(Time|Node)Limit|(Time|Node)Limit$|BadConstraints|InvalidAccount|InvalidQOS|"
        "AccountNotAllowed|QOSNotAllowed|not permitted to use|PartitionConfig|QOSMin|"
        "Max\\w*PerJob|Max\\w*PerNode",
        f"it asks for what is not allowed here and may never start; {_ANOTHER}",
    ),
    (
        "DependencyNeverSatisfied",
        "what it comes after has not succeeded; `orchestrator resume RUN` submits it anew",
    ),
    (
        "QOS|Assoc|Limit",
        "a limit of your account or quality of service is reached; it starts when other jobs have "
        "ended, or the budget is raised",
    ),
    ("Licenses", "a licence that it needs is in use; it starts when one is free"),
)
"""Patterns of Slurm's reasons, the first that is found counts."""
_PASSES = re.compile(
    r"(None|Priority|Resources|Dependency|BeginTime|Cleaning|Prolog|JobArrayTaskLimit)?$"
)


def in_plain_words(reason: str, job_id: str) -> str:
    """What a reason means for its job; empty where nobody needs to know or nothing is known."""
    if _PASSES.match(reason):
        return ""
    words = (text for pattern, text in _WORDS if re.search(pattern, reason.replace("_", " ")))
    return next(words, "").format(job=job_id)
