"""Suites scored by a recipe and by the command line: the same model, units and numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.store import Store
from orchestrator.plan.planner import Plan
from tests.smoke import ROOT, Smoke
from tests.tiny_suite import make_tiny_suite

pytestmark = pytest.mark.slow
RECIPE = {
    "extends": str(ROOT / "recipes/smoke.yaml"),
    "name": "scored",
    "evaluate": {
        "perplexity": None,
        "continuations": None,
        "suites": {"words": {"kind": "swuggy", "data": "tiny", "bootstrap_samples": 100}},
    },
}


class World:
    """A run of two variants that share units, with a suite; the models are there already."""

    def __init__(self, folder: Path, trained: Smoke) -> None:
        self.folder, self.suite = folder, folder / "suite"
        make_tiny_suite(self.suite)
        (folder / "r.yaml").write_text(yaml.safe_dump(RECIPE))
        self.smoke = Smoke.create(
            folder / "smoke",
            folder / "material",
            data={"smoke": str(folder / "material/speech"), "tiny": str(self.suite)},
        )
        self.smoke.take_artifacts(trained, "perplexity", "continuations")
        self.recipe = str(folder / "r.yaml")
        self.smoke.orchestrator("submit", self.recipe, "--name", "scored", "--watch")

    @property
    def store(self) -> Store:
        return Store.open(str(self.smoke.folder / "store"))

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.store.run_storage("scored"))

    @property
    def plan(self) -> Plan:
        return self.run.plan()

    def by_recipe(self, variant: str) -> tuple[dict[str, Any], dict[str, float]]:
        """Scores, and the log-probability of each recording."""
        (instance,) = (
            i for i in self.plan.instances if i.stage == "suite_scores" and i.variants == (variant,)
        )
        storage = self.store.artifact(instance.stage, instance.key).storage
        return storage.read_json("scores.json"), log_probs(Path(storage.url))

    def by_hand(self, model: str, *words: str) -> tuple[dict[str, Any], dict[str, float]]:
        """The same by ``orchestrator score``."""
        to = self.folder / f"out-{len(list(self.folder.glob('out-*')))}"
        suite = (f"swuggy={self.suite}", "--bootstrap-samples", "100")
        done = self.smoke.orchestrator("score", model, *suite, *words, "--json", "-o", str(to))
        return json.loads(done.stdout), log_probs(to / "swuggy")


def log_probs(folder: Path) -> dict[str, float]:
    table = pq.read_table(folder / "log_probs.parquet")
    return dict(zip(table["id"].to_pylist(), table["log_prob"].to_pylist(), strict=True))


@pytest.fixture(scope="module")
def world(calm: tuple[Smoke, str], tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("scores"), calm[0])


def test_a_recipe_and_the_command_line_find_the_same(world: World) -> None:
    stages = [i.stage for i in world.plan.instances]
    assert (stages.count("suite_units"), stages.count("suite_scores")) == (1, 2)
    (warm, warm_log_probs), (cold, cold_log_probs) = (
        world.by_recipe(f"init={init}") for init in ("twist", "cold")
    )
    assert warm["fingerprint"] == cold["fingerprint"]
    assert warm_log_probs != cold_log_probs
    assert "sWUGGY" in world.run.storage.read_bytes("report.html").decode()

    found, own = world.by_hand("scored", "--variant", "init=twist", "--against", "init=cold")
    assert own == pytest.approx(warm_log_probs, abs=1e-4)
    for by_hand, by_recipe in ((found, warm), (found["against"], cold)):
        scores = by_hand["suites"]["swuggy"]
        assert scores["splits"] == by_recipe["splits"]
        assert scores["likelihood_rule"] == by_recipe["likelihood_rule"]
    (first, *_) = found["differences"]["swuggy"]["splits"]["dev"]["figures"]
    assert first["difference"] == pytest.approx(first["a"] - first["b"])


def test_the_last_checkpoint_is_the_model_that_was_published(world: World) -> None:
    _, own = world.by_hand("scored", "--variant", "init=twist", "--step", "12")
    assert own == pytest.approx(world.by_recipe("init=twist")[1], abs=1e-4)


def test_an_exported_model_has_all_that_scoring_needs(world: World) -> None:
    exported = world.folder / "exported"
    words = ("--variant", "init=cold")
    world.smoke.orchestrator("export", "scored", "--to", str(exported), *words)
    cold, log_probs = world.by_recipe("init=cold")
    found, own = world.by_hand(str(exported))
    assert own == pytest.approx(log_probs, abs=1e-4)
    assert found["suites"]["swuggy"]["likelihood_rule"] == cold["likelihood_rule"]

    # A model in Hugging Face format alone says how much it can read, not what it was trained on.
    (exported / "units.json").unlink()
    found, own = world.by_hand(str(exported), "--tokenizer", "scored", *words)
    assert "windows of 256 tokens" in found["suites"]["swuggy"]["likelihood_rule"]
    alike = [abs(own[name] - log_prob) < 1e-4 for name, log_prob in log_probs.items()]
    assert any(alike), "short recordings are whole in either"
    assert not all(alike)


def test_one_suite_more_scores_nothing_anew(world: World) -> None:
    more = f"evaluate.suites.again={json.dumps({'kind': 'swuggy', 'data': 'tiny', 'seed': 1})}"
    done = world.smoke.orchestrator("plan", world.recipe, "--set", more, "--json")
    decisions = {i["node"]: i["decision"] for i in json.loads(done.stdout)["instances"]}
    assert decisions.pop("suite_scores.again") == "run"
    assert set(decisions.values()) == {"reuse"}
