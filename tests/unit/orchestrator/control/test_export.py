"""What the command line says of an export that another process makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.control.export import export_units
from orchestrator.errors import RequestError, RunFailedError
from orchestrator.plan.graph import nodes_until
from tests.unit.jobs.test_export import World
from tests.unit.orchestrator.recipes import recipe


def test_what_was_written_and_how_much(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.tokenize()
    ((to, about),) = export_units(world.run, world.store, tmp_path / "out", "npy")
    assert to == tmp_path / "out"
    assert (to / "train.npy").is_file()
    assert about["format"] == "npy"
    with pytest.raises(RequestError, match="is there already"):
        list(export_units(world.run, world.store, tmp_path / "out", "npy"))


def test_an_export_that_is_killed_is_a_failure_with_a_place(tmp_path: Path) -> None:
    world = World(tmp_path, setup=["kill -9 $$"])
    world.tokenize()
    with pytest.raises(RunFailedError, match="code -9 and without a word"):
        list(export_units(world.run, world.store, tmp_path / "out", "npy"))


def test_a_run_without_units_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path, until="corpus")
    with pytest.raises(RequestError, match="has no units"):
        list(export_units(world.run, world.store, tmp_path / "out", "npy"))
    assert [n.name for n in nodes_until(recipe(), "corpus")] == ["corpus"]
