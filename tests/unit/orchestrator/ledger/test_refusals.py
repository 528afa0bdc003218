"""What Ray's monitor logs of nodes that a cloud refuses."""

from __future__ import annotations

from pathlib import Path

from orchestrator.ledger.refusals import refusals


def test_the_last_reason_of_each_type_counts(tmp_path: Path) -> None:
    log = tmp_path / "monitor.log"
    log.write_text(
        "2026 INFO -- Failed to launch 1 nodes of type p4d: quota\n"
        "2026 INFO -- Failed to launch 3 nodes of type spot: none in a\n2026 more\n"
        "2026 INFO -- Failed to launch 2 nodes of type p4d: InsufficientInstanceCapacity\n"
    )
    assert refusals(log) == {"p4d": "InsufficientInstanceCapacity", "spot": "none in a"}


def test_a_log_on_another_machine_says_nothing(tmp_path: Path) -> None:
    assert refusals(tmp_path / "absent") == {}
