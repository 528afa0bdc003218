"""All rows, and how one is run: in a process of its own, which is ended when its time is over."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch

from benchmarks.gpu.figures import Figure, Setting, SkippedError

_PRELOADED = [
    "torch._dynamo",
    "transformers.models.hubert.modeling_hubert",
    "transformers.models.opt.modeling_opt",
    "benchmarks.gpu.figures",
]
_FIRST_CHARACTERS = 300
_LEAVING_S = 5.0


class Row(NamedTuple):
    """One measurement."""

    name: str
    function: str
    """``module:function`` of this package."""
    limit_s: float


ROWS = (
    Row("units", "unit_misses:figures", 70),
    Row("encoder", "encoder_speed:figures", 100),
    Row("k-means", "clusters:figures", 45),
    Row("memory", "memory_limit:figures", 45),
    Row("checkpoint", "checkpoint_copy:figures", 45),
    Row("training-125m", "training_step:figures_125m", 90),
    Row("training-350m", "training_step:figures_350m", 90),
    Row("deepspeed", "deepspeed_step:figures", 75),
)


class Outcome(NamedTuple):
    """What became of a row."""

    row: str
    figures: list[Figure]
    """Those found before it ended, however that was."""
    skipped: str = ""
    failed: str = ""


def preload() -> None:
    """Import once what takes seconds, for all rows that can be forked."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(_PRELOADED)


def run(row: Row, setting: Setting, limit_s: float) -> Outcome:
    """Run one row, of which nothing is left when this returns."""
    # A GPU's driver cannot be forked.
    context = multiprocessing.get_context("spawn" if setting.device == "cuda" else "forkserver")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(row, setting, sending))
    process.start()
    sending.close()
    try:
        outcome = _collect(row, receiving, time.monotonic() + limit_s, limit_s)
        process.join(0 if outcome.failed else _LEAVING_S)
        return outcome
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)  # its compilers too
        process.join()


def _collect(row: Row, receiving: Connection, deadline: float, limit_s: float) -> Outcome:
    figures: list[Figure] = []
    while receiving.poll(max(0.0, deadline - time.monotonic())):
        try:
            kind, value = receiving.recv()
        except EOFError:
            return Outcome(row.name, figures, failed="its process died")
        if kind != "figure":
            return Outcome(row.name, figures, **({kind: value} if value else {}))
        figures.append(value)
    return Outcome(row.name, figures, failed=f"not over after {limit_s:.3g} s")


def _work(row: Row, setting: Setting, sending: Connection) -> None:
    """In a process of its own: send the figures, and how it ended."""
    os.setpgid(0, 0)
    if setting.is_tiny:
        torch.set_num_threads(1)
    with tempfile.TemporaryFile("w+") as said:  # the table is all that is to be seen
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
            os.dup2(said.fileno(), stream.fileno())
        try:
            for figure in _figures(row, setting):
                sending.send(("figure", figure))
        except SkippedError as error:
            sending.send(("skipped", str(error)))
        except BaseException as error:  # noqa: BLE001 (whatever it is, the other rows go on)
            sending.send(("failed", _one_line(error)))
        else:
            sending.send(("failed", ""))
        sending.close()


def _figures(row: Row, setting: Setting) -> Iterator[Figure]:
    module, _, function = row.function.partition(":")
    yield from getattr(importlib.import_module(f"benchmarks.gpu.{module}"), function)(setting)


def _one_line(error: BaseException) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text[:_FIRST_CHARACTERS]
