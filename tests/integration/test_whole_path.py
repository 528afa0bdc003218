"""The smoke recipe from submit to report, as a user runs it, and again after kill -9."""

from __future__ import annotations

import json
import os
import random
import re
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoModelForCausalLM, HubertModel

from jobs.scoring.perplexity import score_model
from orchestrator.ledger import checkpoints
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.storage import Storage
from orchestrator.ledger.store import Store
from tests.smoke import RECIPE, Smoke
from tests.training import wait_for

pytestmark = pytest.mark.slow
MADE_BEFORE = {"corpus", "targets", "pretrain", "encoder"}
UNITS = MADE_BEFORE | {"codebook", "tokenize"}
STAGES = UNITS | {"pack", "train", "perplexity", "continuations"}


def test_every_stage_succeeds_and_verifies(calm: tuple[Smoke, str]) -> None:
    smoke, run = calm
    status = smoke.status(run)
    assert status["state"] == "succeeded"
    assert {s["name"] for s in status["stages"]} == STAGES
    assert all(s["state"] == "succeeded" and not s["reused"] for s in status["stages"])
    verdict = json.loads(smoke.orchestrator("verify", run, "--json").stdout)
    assert verdict["ok"], verdict


def test_the_filter_and_the_quarantine_worked(calm: tuple[Smoke, str]) -> None:
    smoke, _ = calm
    facts = {}
    for stage in ("corpus", "tokenize"):
        (manifest,) = (smoke.folder / "store" / "artifacts" / stage).glob("*/MANIFEST.json")
        facts[stage] = json.loads(manifest.read_text())["facts"]
    assert facts["corpus"]["num_left_out"] == 3  # the Spanish ones
    assert facts["tokenize"]["num_quarantined"] == 1  # broken.wav
    fates = ("num_recordings", "num_left_out", "num_quarantined")
    assert facts["corpus"]["num_recordings"] == sum(facts["tokenize"][fate] for fate in fates)


def test_it_is_said_how_fast_units_are_sampled(calm: tuple[Smoke, str]) -> None:
    smoke, run = calm
    attempts = (smoke.folder / "store" / "runs" / run / "stages").glob("continuations-*/attempts/*")
    rates = [json.loads((path / "progress.json").read_text())["rates"] for path in attempts]
    assert len(rates) == 2
    assert all(rate["tokens_per_s"] > 0 for rate in rates)


def test_submitting_again_reuses_everything(calm: tuple[Smoke, str]) -> None:
    smoke, run = calm
    before = smoke.status(run)
    done = smoke.orchestrator("submit", str(RECIPE), "--watch")
    assert "everything is done" in done.stderr
    after = smoke.status(run)
    assert [s["attempts"] for s in after["stages"]] == [s["attempts"] for s in before["stages"]]


def test_another_run_attaches_to_the_artifacts(calm: tuple[Smoke, str]) -> None:
    smoke, _ = calm
    run = smoke.submit("--name", "again")
    assert smoke.finish(run) == 0
    assert all(s["reused"] for s in smoke.status(run)["stages"])


@pytest.mark.parametrize(
    ("override", "reused", "named"),
    [
        ("tokenizer.num_clusters=21", UNITS - {"codebook", "tokenize"},
         "tokenizer.num_clusters: 20 -> 21"),
        ("seed=1", UNITS | {"pack"}, "seed: 0 -> 1"),
        ("evaluate.perplexity.seed=1", UNITS | {"pack", "train", "continuations"},
         "evaluate.perplexity.seed: not set -> 1"),
    ],
)  # fmt: skip
def test_a_change_reruns_its_stage_and_later_ones(
    calm: tuple[Smoke, str], override: str, reused: set[str], named: str
) -> None:
    smoke, _ = calm
    plan = json.loads(smoke.orchestrator("plan", str(RECIPE), "--set", override, "--json").stdout)
    assert {i["stage"] for i in plan["instances"] if i["decision"] == "reuse"} == reused
    rerun = [i for i in plan["instances"] if i["decision"] != "reuse"]
    assert rerun
    assert all(i["decision"] == "run" and named in i["reason"] for i in rerun)


def test_more_steps_extend_those_that_are_there(calm: tuple[Smoke, str]) -> None:
    smoke, run = calm
    there = {s["id"] for s in smoke.status(run)["stages"] if s["name"] == "train"}
    words = ("plan", str(RECIPE), "--set", "train.steps=1300")
    plan = json.loads(smoke.orchestrator(*words, "--json").stdout)
    trainings = [i for i in plan["instances"] if i["stage"] == "train"]
    assert {i["extends"] for i in trainings} == there
    for training in trainings:
        assert (training["decision"], training["step"]) == ("resume", 12)
        assert training["reason"] == f"extends {training['extends']}, step 12 of 1,300"
    scores = [i for i in plan["instances"] if i["stage"] == "perplexity"]
    assert {i["reason"] for i in scores} == {"train.steps: 12 -> 1300"}


def test_the_report_is_one_self_contained_page(calm: tuple[Smoke, str], tmp_path: Path) -> None:
    smoke, run = calm
    target = tmp_path / "r.html"
    smoke.orchestrator("report", run, "-o", str(target))
    page = target.read_text()
    assert "<svg" in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)


def test_a_broken_byte_is_found(calm: tuple[Smoke, str]) -> None:
    smoke, run = calm
    (victim, *_) = (smoke.folder / "store" / "artifacts" / "pack").glob("*/train.bin")
    data = victim.read_bytes()
    victim.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    try:
        done = smoke.orchestrator("verify", run, check=False)
        assert done.returncode == 1
        assert "train.bin: bytes differ" in done.stdout
    finally:
        victim.write_bytes(data)


@pytest.mark.parametrize("seed", [1, 2])
def test_kill_9_changes_nothing(
    calm: tuple[Smoke, str], material: Path, tmp_path: Path, seed: int
) -> None:
    """Any process of the run at a random moment; then `resume` until it is done."""
    rng = random.Random(seed)
    smoke = Smoke.create(tmp_path / "s", material)
    run = smoke.submit()
    time.sleep(rng.uniform(5, 60))
    killed = smoke.kill_one(rng)
    smoke.finish(run)
    assert smoke.fingerprint() == calm[0].fingerprint(), killed
    assert smoke.wait_gone() == []


def test_two_shells_at_once_do_the_work_once(
    calm: tuple[Smoke, str], material: Path, tmp_path: Path
) -> None:
    """Two runs that need the same keys, and the same run submitted twice."""
    smoke = Smoke.create(tmp_path / "s", material, cpus=1)
    smoke.take_artifacts(calm[0], *STAGES - MADE_BEFORE)
    words = ["--set", "sweep={}", "--set", "train.steps=4"]
    one, same, other = (
        smoke.submit(*words),
        smoke.submit(*words),
        smoke.submit(*words, "--name", "other"),
    )
    assert one == same
    smoke.finish(one)
    smoke.finish(other)
    assert smoke.begun() == dict.fromkeys(STAGES - MADE_BEFORE, 1)
    assert smoke.wait_gone() == []


def test_a_cancelled_training_saves_first_however_slow_the_store(
    calm: tuple[Smoke, str], material: Path, tmp_path: Path
) -> None:
    """The checkpoint takes far longer than the driver needs to end."""
    slow = {**os.environ, "ORCHESTRATOR_FAULT": '{"kind": "slow_store", "mb_per_s": 0.03}'}
    smoke = Smoke.create(tmp_path / "s", material, slow)
    smoke.take_artifacts(calm[0], "train", "perplexity", "continuations")
    settings = ("sweep={}", "train.steps=100000", "train.checkpoint.every_steps=50000")
    run = smoke.submit(*(word for setting in settings for word in ("--set", setting)))
    folder = RunFolder(Storage(str(smoke.folder / "store" / "runs" / run)))
    (instance,) = (i for i in folder.plan().instances if i.stage == "train")

    def live() -> dict:
        attempts = folder.attempts(instance.id)
        known = attempts and attempts[-1].storage.exists("live.json")
        return attempts[-1].storage.read_json("live.json") if known else {"step": 0}

    wait_for(lambda: live()["step"] > 10, "some steps")
    smoke.orchestrator("cancel", run)
    artifact = Store.open(str(smoke.folder / "store")).artifact("train", instance.key)
    assert [m.step for m in checkpoints.committed(artifact.storage)] == [live()["step"]]
    assert live()["stopped"]
    assert smoke.wait_gone() == []


def test_a_model_that_is_exported_scores_as_the_run_says(
    calm: tuple[Smoke, str], tmp_path: Path
) -> None:
    """Read by plain transformers, from its folder alone."""
    smoke, run = calm
    (made,) = smoke.orchestrator(
        "export", run, "--to", str(tmp_path / "cold"), "--variant", "init=cold"
    ).stdout.split()
    model = AutoModelForCausalLM.from_pretrained(made)
    assert model.config.offset == 0
    HubertModel.from_pretrained(Path(made) / "encoder")
    artifacts = smoke.folder / "store" / "artifacts"
    about = json.loads((Path(made) / "lineage.json").read_text())["artifacts"]
    keys = {name: about[name]["key"][:12] for name in ("perplexity", "tokenize")}
    of_run = pq.read_table(artifacts / "perplexity" / keys["perplexity"] / "test.nll.parquet")
    shards = pa.concat_tables(
        pq.read_table(path, columns=["id", "units"])
        for path in (artifacts / "tokenize" / keys["tokenize"]).rglob("shards/*/*")
    )
    units = dict(zip(shards["id"].to_pylist(), shards["units"].to_pylist(), strict=True))
    scored = score_model(
        model,
        [np.array(units[name]) for name in of_run["id"].to_pylist()],
        context_length=32,
        num_samples=of_run["num_samples"].to_numpy(),
    )
    assert scored.nll.tolist() == pytest.approx(of_run["nll"].to_pylist(), rel=1e-5)
