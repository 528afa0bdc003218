"""A run's units as a new folder, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.export import main
from jobs.lm.splits import SPLITS, deal_out
from jobs.speech.units import shard_bytes
from jobs.speech.utterances import Heard, ShardAudio, Utterance
from jobs.unit_shards import shard_path
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.store import Store
from orchestrator.plan.graph import nodes_until
from orchestrator.spec.recipe import Recipe, Windows
from tests.corpora import row_of
from tests.unit.orchestrator.recipes import cluster, plan_of, recipe, swept

RECIPE = recipe()
NUM_SHARDS, ROWS = 3, 8


class World:
    """A run whose units are there."""

    def __init__(
        self,
        folder: Path,
        of: Recipe = RECIPE,
        until: str = "tokenize",
        setup: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.store = Store.open(str(folder / "store"))
        self.plan = plan_of(of, nodes_of=partial(nodes_until, until=until))
        self.run = RunFolder(self.store.run_storage("small"))
        where = cluster(str(folder / "store"), environment={"setup": list(setup)})
        self.run.create(self.plan, of, where, {}, {})
        self.instance = self.plan.instances[-1]
        self.units = self.store.artifact("tokenize", self.instance.key)
        self.rows: dict[str, list[int]] = {}

    def tokenize(self) -> None:
        rng = np.random.default_rng(0)
        for shard in range(NUM_SHARDS):
            names = [f"r{shard}-{row}" for row in range(ROWS)]
            heard = [Heard(Utterance(n, row_of(n), 0, 320 * 9)) for n in names]
            audio = ShardAudio([], Windows(), heard)
            units = [rng.integers(0, 8, 9 * (row > 0)).astype(np.uint16) for row in range(ROWS)]
            self.units.storage.create(
                shard_path(shard), shard_bytes(audio, dict(enumerate(units)), dedup=False)
            )
            self.rows |= {n: u.tolist() for n, u in zip(names, units, strict=True) if len(u)}
        self.units.publish(inputs=self.instance.inputs, facts={}, producer={})

    def export(self, to: Path, form: str = "parquet") -> int:
        words = ["--store", self.store.storage.url, "--run", self.run.name]
        which = ["--instance", self.instance.id, "--format", form, "--to", str(to)]
        return main([*words, *which])

    def left(self) -> list[str]:
        return [path.name for path in self.folder.iterdir() if path.name != "store"]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_every_utterance_is_in_the_split_of_the_runs_own_training(world: World) -> None:
    world.tokenize()
    to = world.folder / "out"
    assert world.export(to) == 0
    found, deal = {}, deal_out(RECIPE.split, [pa.chunked_array([list(world.rows)])])
    for split in SPLITS:
        for row in pq.read_table(to / f"{split}.parquet").to_pylist():
            found[row["id"]] = row["units"]
            (code,) = deal.codes(pa.chunked_array([[row["recording"]]])).tolist()
            assert SPLITS[code] == split
    assert found == world.rows
    about = json.loads((to / "export.json").read_text())
    assert about["num_empty_utterances"] == NUM_SHARDS
    assert about["key"] == world.instance.key
    assert sum(c["num_utterances"] for c in about["splits"].values()) == len(world.rows)
    assert world.left() == ["out"]


def test_an_empty_folder_may_be_there_and_nothing_else(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.tokenize()
    to = world.folder / "out"
    to.mkdir()
    assert world.export(to) == 0
    before = sorted(to.iterdir())
    assert world.export(to, "npy") == 2
    assert "is there already" in capsys.readouterr().err
    assert sorted(to.iterdir()) == before
    (world.folder / "link").symlink_to("nowhere")
    assert world.export(world.folder / "link") == 2
    assert world.export(to / "export.json") == 2


def test_units_that_are_not_finished_are_refused(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    assert world.export(world.folder / "out") == 2
    assert "orchestrator resume small" in capsys.readouterr().err
    assert world.left() == []


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_of_damaged_units_nothing_is_exported(
    world: World, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    world.tokenize()
    path = Path(world.units.storage.url, shard_path(NUM_SHARDS - 1))
    if damage == "flip":
        data = bytearray(path.read_bytes())
        data[40] ^= 1
        path.chmod(0o644)
        path.write_bytes(data)
    else:
        path.unlink()
    assert world.export(world.folder / "out") == 1
    assert shard_path(NUM_SHARDS - 1) in capsys.readouterr().err
    assert world.left() == []


def test_variants_that_hold_out_differently_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(tmp_path, swept(RECIPE, **{"split.valid": [0.1, 0.2]}))
    world.tokenize()
    assert world.export(tmp_path / "out") == 2
    assert "split the recordings differently" in capsys.readouterr().err
