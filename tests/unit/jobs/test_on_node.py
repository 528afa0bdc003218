"""A stage's process on a node; that it gets there needs a Ray cluster (`test_ray_cluster`)."""

from __future__ import annotations

import time

from jobs.on_node import Process

TIMEOUT_S = 60.0


def ended(process: Process) -> tuple[bytes, int]:
    said, deadline = b"", time.monotonic() + TIMEOUT_S
    while True:
        more, code = process.look()
        said += more
        if code is not None:
            return said, code
        assert time.monotonic() < deadline
        time.sleep(0.05)


def statement(text: str) -> Process:
    return Process("timeit", ["-n", "1", "-r", "1", text])


def test_what_it_prints_comes_before_its_end_and_its_exit_code() -> None:
    said, code = ended(
        statement("import jobs, os; print('x' * 3_000_000, flush=True); os._exit(3)")
    )
    assert (said.count(b"x"), code) == (3_000_000, 3)


def test_a_warning_reaches_it() -> None:
    process = statement("import time; print('there', flush=True); time.sleep(60)")
    while not process.look()[0]:
        time.sleep(0.05)
    process.warn()
    assert ended(process)[1] == -15
