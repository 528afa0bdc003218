"""What verbs print to, and what they say when somebody interrupts them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

from orchestrator.control.executor import observe
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.status import BROKEN

_PIPE_COLUMNS = 1000
"""Wide enough for every table: what reads a pipe wants whole lines."""


class Terminal(Console):
    """Takes no bracket in a name for markup, and cuts no table in a pipe."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)
        if not self.is_terminal and "COLUMNS" not in os.environ:
            self.width = _PIPE_COLUMNS

    def on_broken_pipe(self) -> None:
        """Let whoever runs the verb decide. Raises BrokenPipeError."""
        raise  # it is being handled


@contextmanager
def interruptible(words: Callable[[], str]) -> Iterator[None]:
    """Give an interruption the words that say what it leaves behind, unless it has some."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        if interrupt.args:
            raise
        raise KeyboardInterrupt(words()) from None


def what_stands(run: RunFolder) -> str:
    """What an interruption leaves behind of a run, as far as that can be told."""
    resume = f"`orchestrator resume {run.name}`"
    try:
        if not run.exists():
            return "nothing was started"
        submissions = run.submissions.all()
        if submissions and not submissions[-1].is_whole:
            return f"{run.name} was handed over in part; {resume} hands over the rest"
        if observe(run).is_alive:
            return "the run goes on"
    except BROKEN:
        return f"`orchestrator status {run.name}` shows whether the run goes on"
    return f"{run.name} is there; {resume} starts it"
