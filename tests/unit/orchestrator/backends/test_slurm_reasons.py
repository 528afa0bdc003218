"""Why jobs wait, in words that say what to do."""

from __future__ import annotations

import pytest

from orchestrator.backends.slurm_reasons import LAUNCH_FAILED, in_plain_words


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        ("JobHeldAdmin", "an administrator holds it; ask them"),
        ("JobHeldUser", "you hold it; `scontrol release 7`"),
        (LAUNCH_FAILED, "`orchestrator resume RUN` replaces it"),
        ("launch_failed_requeued_held", "`orchestrator resume RUN` replaces it"),
        ("job requeued in held state", "`scontrol release 7`"),
        (
            "ReqNodeNotAvail, Reserved for maintenance",
            "a maintenance (`scontrol show reservation`)",
        ),
        ("ReqNodeNotAvail, UnavailableNodes:node[1-3]", "down, drained or reserved (`sinfo -R`)"),
        ("Reservation", "its reservation has not begun"),
        ("ReservationDeleted", "never starts"),
        ("PartitionDown", "its partition starts no jobs at present"),
        ("PartitionTimeLimit", "`orchestrator resume RUN --cluster FILE`"),
        ("BadConstraints", "not allowed here"),
        ("InvalidQOS", "not allowed here"),
        ("DependencyNeverSatisfied", "has not succeeded"),
        ("QOSMaxJobsPerUserLimit", "a limit of your account"),
        ("AssocGrpGRES", "a limit of your account"),
        ("Licenses", "a licence"),
        (
            "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority "
            "partitions",
            "down, drained or reserved (`sinfo -R`)",
        ),
        ("user env retrieval failed requeued held", "`scontrol release 7`"),
        ("Job's QOS not permitted to use this partition (long allows a not b)", "may never start"),
        ("Job's account not permitted to use this partition (x)", "may never start"),
        ("PartitionConfig", "may never start"),
    ],
)
def test_reasons_with_what_to_do(reason: str, says: str) -> None:
    assert says in in_plain_words(reason, "7")


@pytest.mark.parametrize(
    "reason", ["", "None", "Priority", "Resources", "Dependency", "BeginTime", "SomethingNew"]
)
def test_what_passes_by_itself_is_not_explained(reason: str) -> None:
    assert in_plain_words(reason, "7") == ""
