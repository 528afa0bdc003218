"""What a process that controls a run writes to its log."""

from __future__ import annotations

import subprocess
import sys

import pytest

from orchestrator.control.process import run_parser

SCRIPT = """
import logging
from orchestrator.control.process import log_to_stderr
log_to_stderr()
logging.getLogger("orchestrator.control.supervise").info("%s: attempt %d started", "pack", 1)
logging.getLogger("__main__").info("mine")
logging.getLogger("botocore").info("not ours")
logging.getLogger("botocore").warning("but this")
"""


def test_our_lines_have_a_time_and_libraries_only_warn() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    times, texts = zip(*(line.split(" ", 1) for line in done.stderr.splitlines()), strict=True)
    assert texts == ("pack: attempt 1 started", "mine", "but this")
    assert all(len(time.split(":")) == 3 for time in times)
    assert done.stdout == ""


def test_a_run_must_be_named() -> None:
    options = run_parser("x").parse_args(["--store", "s3://b", "--run", "r"])
    assert (options.store, options.run) == ("s3://b", "r")
    with pytest.raises(SystemExit):
        run_parser("x").parse_args(["--store", "s3://b"])
