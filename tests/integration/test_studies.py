"""The tokenizer ablation at its smallest: four frame rates, two codebooks each, in one submit."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from transformers import HubertConfig, HubertModel

from orchestrator.ledger.storage import sha256_of
from tests.smoke import RECIPE, ROOT, Smoke
from tests.training import wait_for

pytestmark = pytest.mark.slow
STUDY = ROOT / "recipes" / "studies" / "tokenizer-ablation-demo.yaml"
CONVOLUTIONS = ("conv_dim", "conv_kernel", "conv_stride")
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "feat_extract_norm": "layer",
}
NUM_RATES, NUM_CODEBOOKS = 4, 2


@dataclass(frozen=True)
class Study:
    """The study's own frame rates and convolutions over the smoke recipe, by encoders at hand."""

    material: Path
    folder: Path

    def create(self, folder: Path) -> Smoke:
        """A fresh store."""
        names = [path.name for path in sorted((self.folder / "encoders").iterdir())]
        models = {name: str(self.folder / "encoders" / name) for name in names}
        return Smoke.create(
            folder, self.material, models={**models, "smoke-lm": str(self.material / "lm")}
        )

    def submit(self, smoke: Smoke) -> str:
        """The run's name; up to the packed tokens, which is where tokenizers end."""
        recipe = str(self.folder / "ablation.yaml")
        return smoke.orchestrator("submit", recipe, "--until", "pack").stdout.strip()


@pytest.fixture(scope="module")
def study(material: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("study")
    points = yaml.safe_load(STUDY.read_text())["sweep"]["tokenizer"]
    assert len(points) == NUM_RATES
    for name, point in points.items():
        asked = point["encoder"]
        given = {n: asked["pretrain"][n] for n in CONVOLUTIONS}
        shape = {**TINY, **given, "conv_dim": [16] * len(given["conv_dim"])}
        torch.manual_seed(0)
        HubertModel(HubertConfig(**shape)).save_pretrained(folder / "encoders" / name)
        digest = sha256_of(folder / "encoders" / name / "model.safetensors")
        at = {n: asked[n] for n in ("layer", "frame_rate_hz")}
        point["encoder"] = {"model": name, "sha256": digest, **at}
    sweep = {"tokenizer": points, "tokenizer.num_clusters": [10, 15]}
    recipe = {"extends": str(RECIPE), "name": "ablation", "sweep": sweep}
    (folder / "ablation.yaml").write_text(yaml.safe_dump(recipe))
    return Study(material, folder)


def heard_hours(smoke: Smoke) -> list[float]:
    """Hours of audio that went through an encoder, for each attempt that made units of any."""
    segments = (smoke.folder / "store" / "runs").glob("*/stages/tokenize-*/attempts/*/events-*")
    events = (json.loads(line) for path in segments for line in path.read_text().splitlines())
    return [event["hours"]["decoded"] for event in events if event["kind"] == "heard"]


@pytest.fixture(scope="module")
def done(study: Study) -> tuple[Smoke, str]:
    smoke = study.create(study.folder / "s")
    run = study.submit(smoke)
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


def test_the_plan_says_what_that_saves(study: Study, done: tuple[Smoke, str]) -> None:
    smoke, _ = done
    words = ("plan", str(study.folder / "ablation.yaml"), "--until", "pack")
    shared = json.loads(smoke.orchestrator(*words, "--json").stdout)["sharing"]
    assert (shared["num_encodings"], shared["num_passes"]) == (8, NUM_RATES)
    assert shared["hours_wanted"] == pytest.approx(NUM_CODEBOOKS * shared["hours_encoded"])
    assert f"audio is encoded {NUM_RATES} times in place of 8" in smoke.orchestrator(*words).stdout


def test_killed_half_way_it_ends_with_the_same_bytes(
    study: Study, done: tuple[Smoke, str], tmp_path: Path
) -> None:
    """Every process of the run, once the units of some encoders are there, and not of others."""
    smoke = study.create(tmp_path / "s")
    smoke.take_artifacts(done[0], "tokenize", "pack")
    run, units = study.submit(smoke), smoke.folder / "store" / "artifacts" / "tokenize"
    wait_for(lambda: any(units.glob("*/MANIFEST.json")), "the first units")
    for process in smoke.processes():
        with suppress(psutil.NoSuchProcess):
            process.kill()
    assert smoke.wait_gone() == []
    whole = published_at(smoke)
    assert 0 < sum(path.parts[-3] == "tokenize" for path in whole) < NUM_RATES * NUM_CODEBOOKS
    smoke.finish(run)
    assert smoke.fingerprint() == done[0].fingerprint()
    assert published_at(smoke).items() >= whole.items(), "what was whole was made anew"


def published_at(smoke: Smoke) -> dict[Path, int]:
    """When each manifest that is there was written."""
    manifests = (smoke.folder / "store" / "artifacts").glob("*/*/MANIFEST.json")
    return {path: path.stat().st_mtime_ns for path in manifests}
