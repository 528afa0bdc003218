"""What the arguments of several verbs name."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from orchestrator.cli.arguments import prepared, run_and_store
from orchestrator.errors import RequestError
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.store import Store
from tests.unit.orchestrator.recipes import cluster, plan_of, recipe


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store with one run, a cluster file that names it, and its folder as the current one."""
    store = Store.open(str(tmp_path / "store"))
    (tmp_path / "c.yaml").write_text(f"backend: local\nstore: {store.storage.url}\n")
    run = RunFolder(store.run_storage("small"))
    run.create(plan_of(recipe()), recipe(), cluster(store.storage.url), {}, {})
    monkeypatch.chdir(tmp_path / "store")
    return store


def named(run: str) -> argparse.Namespace:
    return argparse.Namespace(run=run, cluster="../c.yaml")


@pytest.mark.parametrize("name", ["small", "runs/small", "./runs/small/", "{url}/runs/small"])
def test_a_run_is_found_by_its_name_or_its_folder(store: Store, name: str) -> None:
    run, its_store = run_and_store(named(name.format(url=store.storage.url)))
    assert run.storage.url == f"{store.storage.url}/runs/small"
    assert its_store.storage.url == store.storage.url


@pytest.mark.parametrize("name", ["nope", "runs/nope"])
def test_a_run_that_is_not_there_is_refused(store: Store, name: str) -> None:
    with pytest.raises(RequestError, match=r"^nope: no such run in .*/runs/nope"):
        run_and_store(named(name))
    assert store.runs() == ("small",)


def test_a_folder_is_no_recipe_and_is_there(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"is no file; check the path"):
        prepared(argparse.Namespace(recipe=tmp_path))
