"""The tokenizer ablation at its smallest: four frame rates, two codebooks each, in one submit."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.smoke import RECIPE, ROOT, Smoke
from tests.training import wait_for

pytestmark = pytest.mark.slow
STUDY = ROOT / "recipes" / "studies" / "tokenizer-ablation-demo.yaml"
WIDTHS = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "intermediate_size": 64}
TINY = {**WIDTHS, "batch_size": 2, "crop_s": 1.5, "warmup_steps": 1}
NUM_RATES, NUM_CODEBOOKS = 4, 2


def tiny_study(folder: Path) -> Path:
    """The study's own frame rates over the smoke recipe, its encoders and codebooks made tiny."""
    sweep: dict[str, Any] = yaml.safe_load(STUDY.read_text())["sweep"]
    for point in sweep["tokenizer"].values():
        pretrain = point["encoder"]["pretrain"]
        pretrain |= {**TINY, "conv_dim": [16] * len(pretrain["conv_dim"])}
        pretrain["iterations"] = [{"targets": "mfcc", "num_clusters": 10, "steps": 3}]
    sweep["tokenizer.num_clusters"] = [10, 15]
    recipe = folder / "ablation.yaml"
    recipe.write_text(yaml.safe_dump({"extends": str(RECIPE), "name": "ablation", "sweep": sweep}))
    return recipe


def submit(smoke: Smoke) -> str:
    recipe = tiny_study(smoke.folder)
    return smoke.orchestrator("submit", str(recipe), "--until", "pack").stdout.strip()


def heard_hours(smoke: Smoke) -> list[float]:
    """Hours of audio that went through an encoder, for each attempt that made units of any."""
    segments = (smoke.folder / "store" / "runs").glob("*/stages/tokenize-*/attempts/*/events-*")
    events = (json.loads(line) for path in segments for line in path.read_text().splitlines())
    return [event["hours"]["decoded"] for event in events if event["kind"] == "heard"]


@pytest.fixture(scope="module")
def done(material: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Smoke, str]:
    smoke = Smoke.create(tmp_path_factory.mktemp("study") / "s", material)
    run = submit(smoke)
    assert smoke.finish(run) == 0
    return smoke, run


def test_audio_is_encoded_once_for_each_encoder(done: tuple[Smoke, str]) -> None:
    smoke, run = done
    stages = smoke.status(run)["stages"]
    made = {name: sum(s["name"] == name for s in stages) for name in ("corpus", "encoder", "pack")}
    assert made == {"corpus": 1, "encoder": NUM_RATES, "pack": NUM_RATES * NUM_CODEBOOKS}
    (manifest,) = (smoke.folder / "store" / "artifacts" / "corpus").glob("*/MANIFEST.json")
    kept_hours = json.loads(manifest.read_text())["facts"]["kept_hours"]
    assert heard_hours(smoke) == [pytest.approx(kept_hours, abs=0.001)] * NUM_RATES
    assert smoke.begun()["tokenize"] == NUM_RATES


def test_the_plan_says_what_that_saves(done: tuple[Smoke, str]) -> None:
    smoke, _ = done
    words = ("plan", str(smoke.folder / "ablation.yaml"), "--until", "pack")
    shared = json.loads(smoke.orchestrator(*words, "--json").stdout)["sharing"]
    assert (shared["num_encodings"], shared["num_passes"]) == (8, NUM_RATES)
    assert shared["hours_wanted"] == pytest.approx(NUM_CODEBOOKS * shared["hours_encoded"])
    assert f"audio is encoded {NUM_RATES} times in place of 8" in smoke.orchestrator(*words).stdout


def test_killed_half_way_it_ends_with_the_same_bytes(
    done: tuple[Smoke, str], material: Path, tmp_path: Path
) -> None:
    """Every process of the run, once the units of some encoders are there, and not of others."""
    smoke = Smoke.create(tmp_path / "s", material)
    smoke.take_artifacts(done[0], "codebook", "tokenize", "pack")
    run, units = submit(smoke), smoke.folder / "store" / "artifacts" / "tokenize"
    wait_for(lambda: any(units.glob("*/MANIFEST.json")), "the first units")
    for process in smoke.processes():
        with suppress(psutil.NoSuchProcess):
            process.kill()
    assert smoke.wait_gone() == []
    whole = num_attempts(smoke, run)
    assert 0 < sum(name.startswith("tokenize") for name in whole) < NUM_RATES * NUM_CODEBOOKS
    smoke.finish(run)
    assert smoke.fingerprint() == done[0].fingerprint()
    assert num_attempts(smoke, run).items() >= whole.items(), "what was whole was begun anew"


def num_attempts(smoke: Smoke, run: str) -> dict[str, int]:
    """Attempts of every instance that is done."""
    stages = smoke.status(run)["stages"]
    return {s["id"]: len(s["attempts"]) for s in stages if s["state"] == "succeeded"}
