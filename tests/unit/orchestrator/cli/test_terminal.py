"""Names on a terminal and in a pipe, and what an interruption says."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.table import Table

from orchestrator.cli.terminal import Terminal, interruptible, what_stands
from orchestrator.ledger.lease import Process
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.store import Store
from orchestrator.ledger.submission import SubmittedJob
from tests.unit.orchestrator.recipes import cluster, plan_of, recipe


@pytest.mark.parametrize("name", ["[red]x", "[/]", ":smile:", "[link=a]b"])
def test_a_name_is_printed_as_it_is(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(name, title=name, box=None)
    table.add_row(name)
    Terminal().print(name, table)
    assert capsys.readouterr().out.count(name) == 4


def test_a_table_in_a_pipe_is_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    table = Table("x", box=None)
    table.add_row("long " * 50)
    Terminal().print(table)
    assert len(capsys.readouterr().out.splitlines()) == 2


def words_of(interrupt: KeyboardInterrupt, words: str) -> str:
    with pytest.raises(KeyboardInterrupt) as left, interruptible(lambda: words):
        raise interrupt
    return str(left.value)


def test_the_innermost_words_of_an_interruption_count() -> None:
    assert words_of(KeyboardInterrupt(), "outer") == "outer"
    assert words_of(KeyboardInterrupt("inner"), "outer") == "inner"


def test_what_stands_of_a_run(tmp_path: Path) -> None:
    run = RunFolder(Store.open(str(tmp_path)).run_storage("small"))
    assert what_stands(run) == "nothing was started"
    run.create(plan_of(recipe()), recipe(), cluster(str(tmp_path), backend="local"), {}, {})
    assert what_stands(run) == "small is there; `orchestrator resume small` starts it"
    run.begin_supervisor(process=vars(Process.current()))
    assert what_stands(run) == "the run goes on"


def test_a_submission_that_was_cut_short_is_named(tmp_path: Path) -> None:
    run = RunFolder(Store.open(str(tmp_path)).run_storage("small"))
    run.create(plan_of(recipe()), recipe(), cluster(str(tmp_path)), {}, {})
    number = run.submissions.begin("user", {})
    job = SubmittedJob(name="a", kind="stage", instance="a", id="1", submitted_at=1.0)
    run.submissions.record(number, job)
    assert what_stands(run) == (
        "small was handed over in part; `orchestrator resume small` hands over the rest"
    )


def test_a_run_that_cannot_be_understood_is_left_to_status(tmp_path: Path) -> None:
    run = RunFolder(Store.open(str(tmp_path)).run_storage("small"))
    run.storage.create("plan.json", b"{")
    assert what_stands(run) == "`orchestrator status small` shows whether the run goes on"
