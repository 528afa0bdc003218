"""A run in the terminal: its stages, their speed, what failed and what to do about it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.cli.terminal import Terminal, interruptible, what_stands
from orchestrator.control.executor import observe
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.status import RunState, RunStatus, StageStatus, StatusReader
from orchestrator.ledger.store import Store
from orchestrator.quantities import format_duration
from orchestrator.report.page import summary

EVERY_S = 1.0
"""How often what jobs write themselves is read; a scheduler is asked less often."""
LINE_EVERY_S = 30.0
"""How often a line of progress goes into a pipe or a log."""
_MAX_CAUSES_LISTED = 3
_FIRST_RATES = ("loss", "tokens_per_s", "audio_s_per_s", "mfu")
"""What most people look for; the other rates follow."""


def watch(
    run: RunFolder, store: Store, *, every_s: float = EVERY_S, line_every_s: float = LINE_EVERY_S
) -> int:
    """Show the run until it ends; 0 when it succeeded, else 1.

    Interrupting leaves the run alone.
    """
    console, reader = Terminal(stderr=True), StatusReader(run, store)
    with interruptible(lambda: what_stands(run)):
        observed, observed_at = observe(run), time.monotonic()
        status, lines = reader.read(observed), ChangeLines(line_every_s)
        with _live(run_view(status), console) as live:
            while not status.state.is_final:
                time.sleep(every_s)
                if time.monotonic() - observed_at >= observed.look_every_s:
                    observed, observed_at = observe(run), time.monotonic()
                status = reader.read(observed)
                if live:
                    live.update(run_view(status))
                else:
                    for line in lines.since(status, time.monotonic()):
                        print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr)
    if not live:
        console.print(run_view(status))
    if status.state is RunState.SUCCEEDED:
        print("\n".join(summary(run, store, observed)))
        return 0
    print("\n".join(ending_lines(status)), file=sys.stderr)
    return 1


def _live(view: Group, console: Console) -> AbstractContextManager[Live | None]:
    """A view that is drawn over and over; nothing in a pipe or a log."""
    if not console.is_terminal:
        return nullcontext()
    return Live(view, console=console, refresh_per_second=2, transient=False)


def run_view(status: RunStatus) -> Group:
    """One row a stage instance; below them a line for each that works or has failed."""
    table = Table(box=None, pad_edge=False)
    table.title, table.title_justify = f"{status.run}: {status.shown_state}", "left"
    for name in ("stage", "variant", "state", "progress", "left", "attempts"):
        table.add_column(name, no_wrap=name != "variant", overflow="fold")
    everyone = max((", ".join(s.instance.variants) for s in status.stages), key=len)
    for stage in status.stages:
        names = ", ".join(stage.instance.variants)
        table.add_row(
            stage.instance.id,
            "all" if names == everyone else names,
            stage.shown_state,
            _progress(stage),
            _left(stage),
            f"{len(stage.attempts)}",
        )
    return Group(table, *(Text(line) for line in _remarks(status)))


def ending_lines(status: RunStatus) -> list[str]:
    """How a run ended that did not succeed, in whose words, and what its user can do."""
    if status.moved:
        there = f"  `orchestrator status {status.moved_to} --watch` shows it there"
        return [f"run {status.run}: {status.moved.words}", there]
    cause = f" ({status.cause})" if status.cause else ""
    failures = [f"  {status.refusal}"] if status.refusal else []
    failures += [f"  {line}" for line in failure_lines(status)]
    resume = f"`orchestrator resume {status.run}` continues it"
    mend = "change what is wrong there, then submit again; resuming alone would end the same way"
    advice = resume if status.resuming_helps else mend
    if status.is_at_limit:
        advice = f"raise it, and `orchestrator resume {status.run} --cluster FILE` goes on"
    return [f"run {status.run}: {status.state}{cause}", *failures, f"  {advice}"]


def failure_lines(status: RunStatus) -> Iterator[str]:
    """Why each stage failed that did, in its own words or the scheduler's; else why the run did."""
    yield from _why_it_stopped(status)
    for stage in status.stages:
        if stage.failure:
            yield f"{stage.instance.id}: {_failure(stage)}; see {stage.failure.log}"
        elif stage.state is RunState.FAILED and stage.job:
            yield f"{stage.instance.id}: the scheduler says: {stage.job}"


class ChangeLines:
    """What a log is told of a run: changes of state, and now and then how far it is."""

    def __init__(self, line_every_s: float) -> None:
        self._line_every_s = line_every_s
        self._states: dict[str, str] = {}
        self._progress_at = 0.0

    def since(self, status: RunStatus, now: float) -> Iterator[str]:
        """The lines due at a monotonic time."""
        for stage in status.stages:
            state = stage.shown_state
            if self._states.get(stage.instance.id) != state:
                self._states[stage.instance.id] = state
                yield f"{stage.instance.id} ({', '.join(stage.instance.variants)}): {state}"
        if now - self._progress_at >= self._line_every_s:
            self._progress_at = now
            for stage in status.stages:
                if stage.state is RunState.RUNNING and stage.progress:
                    left = f"{_left(stage)} left" if _left(stage) else ""
                    words = filter(None, (_progress(stage), left, _rates(stage)))
                    yield f"{stage.instance.id}: {', '.join(words)}"


def _why_it_stopped(status: RunStatus) -> Iterator[str]:
    """Why nobody goes on with a run of which no stage has failed, in its supervisor's words."""
    if status.reason and not any(stage.failure for stage in status.stages):
        words = status.reason.removeprefix(f"{status.cause}: ")
        yield f"{status.run}: {': '.join(filter(None, (status.cause, words)))}"


def _remarks(status: RunStatus) -> Iterator[str]:
    if status.moved:
        yield status.moved.words
    else:
        yield from _why_it_stopped(status)
    if status.refusal:
        yield f"{status.refusal}; `orchestrator resume {status.run}` hands it over again"
    for stage in status.stages:
        causes = [a.cause for a in stage.attempts if a.cause][-_MAX_CAUSES_LISTED:]
        parts = [_rates(stage)] if stage.state is RunState.RUNNING else []
        if stage.failure:
            parts.append(_failure(stage))
        elif causes:
            parts.append(f"attempts ended by {', '.join(causes)}")
        if stage.state in (RunState.QUEUED, RunState.RUNNING) and stage.waits:
            parts.append(f"waits: {stage.waits}")
        elif stage.state is RunState.UNKNOWN:
            parts.append(stage.job)
        if any(parts):
            yield f"{stage.instance.id}: {'; '.join(filter(None, parts))}"


def _failure(stage: StageStatus) -> str:
    """The failing attempt's own last sentence; the retry policy's where it left none."""
    attempt = stage.failure
    if not attempt:
        return ""
    if attempt.state == RunState.SUCCEEDED:
        return "was done, but its artifact is not in the store any more; resume makes it anew"
    said = (attempt.message or attempt.reason).removeprefix(f"{attempt.cause}: ")
    return ": ".join(filter(None, (attempt.cause, said)))


def _rates(stage: StageStatus) -> str:
    rates = stage.progress.get("rates", {})
    names = [*(n for n in _FIRST_RATES if n in rates), *(n for n in rates if n not in _FIRST_RATES)]
    return ", ".join(f"{name.replace('_per_s', '/s')} {_number(rates[name])}" for name in names)


def _number(rate: float) -> str:
    return f"{rate:,.0f}" if abs(rate) >= 1000 else f"{rate:.4g}"


def _progress(stage: StageStatus) -> str:
    progress = stage.progress
    if stage.state is RunState.RUNNING and progress:
        return f"{progress['done']:g}/{progress['total']:g} {progress['unit']}"
    if stage.shards_total:
        return f"{stage.shards_done}/{stage.shards_total} shards"
    return f"{stage.step}/{stage.instance.steps} steps" if stage.instance.steps else ""


def _left(stage: StageStatus) -> str:
    """Time left, if the rest goes as the attempt has gone so far."""
    progress = stage.progress
    if stage.state is not RunState.RUNNING or not progress or not progress["done"]:
        return ""
    took_s = progress["at"] - stage.attempts[-1].started_at
    return format_duration(took_s * (progress["total"] - progress["done"]) / progress["done"])
