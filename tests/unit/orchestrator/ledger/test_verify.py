"""A verdict on every instance of a run, those of earlier versions too."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.ledger import checkpoints
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.storage import to_json
from orchestrator.ledger.store import Store
from orchestrator.ledger.verify import verify
from tests.unit.orchestrator.before import unpack


@pytest.fixture
def before(tmp_path: Path) -> tuple[Store, RunFolder]:
    return unpack(tmp_path)


def test_a_run_of_the_version_before_verifies(before: tuple[Store, RunFolder]) -> None:
    store, run = before
    verdicts = list(verify(run, store))
    assert len(verdicts) == 9
    assert [v.problems for v in verdicts] == [()] * 9
    trained = [v for v in verdicts if v.instance.startswith("train-")]
    assert all("windows used" in v.notes[0] for v in trained)


def test_a_changed_byte_is_found_in_the_file_that_has_it(before: tuple[Store, RunFolder]) -> None:
    store, run = before
    pack = run.plan().chosen("pack")[0]
    storage = store.artifact(pack.stage, pack.key).storage
    data = storage.read_bytes("train.bin")
    storage.replace("train.bin", bytes([data[0] ^ 1]) + data[1:])
    wrong = {v.instance: v for v in verify(run, store) if v.problems}
    assert list(wrong) == [pack.id]
    assert "train.bin: bytes differ" in wrong[pack.id].problems[0]
    assert wrong[pack.id].remedy.startswith(f"remove {storage.url}, then `orchestrator resume ")


def test_a_step_that_is_missing_is_found(before: tuple[Store, RunFolder]) -> None:
    store, run = before
    train = run.plan().chosen("train")[0]
    storage = store.artifact(train.stage, train.key).storage
    lines = storage.read_bytes("metrics.jsonl").splitlines(keepends=True)
    storage.replace("metrics.jsonl", b"".join(lines[:-1]))
    (problems,) = [v.problems for v in verify(run, store) if v.problems]
    assert any("steps are not 1..12" in problem for problem in problems)


def test_other_weights_than_those_of_the_key_are_found(before: tuple[Store, RunFolder]) -> None:
    store, run = before
    train = run.plan().chosen("train")[0]
    storage = store.artifact(train.stage, train.key).storage
    manifest = storage.read_json("MANIFEST.json")
    num_windows = manifest["facts"]["num_windows"]
    stream = {"name": "speech", "num_windows": num_windows, "weight": 1}
    manifest["facts"]["mixture"] = [stream]
    storage.replace("MANIFEST.json", to_json(manifest))
    (problems,) = [v.problems for v in verify(run, store) if v.problems]
    assert "mixed by {'speech': 1}, and the key says {}" in problems[0]


def test_a_checkpoint_without_a_readable_manifest_hides_nothing_else(
    before: tuple[Store, RunFolder],
) -> None:
    store, run = before
    train = run.plan().chosen("train")[0]
    storage = store.artifact(train.stage, train.key).storage
    name = checkpoints.name_of(12, 1)
    storage.create(f"{checkpoints.FOLDER}/{name}/{checkpoints.MANIFEST}", b"{}")
    storage.replace("metrics.jsonl", b"{}\n")
    (verdict,) = [v for v in verify(run, store) if v.problems]
    assert verdict.num_files
    assert "metrics.jsonl" in verdict.problems[0]
    assert "is no checkpoint's manifest" in verdict.problems[-1]


def test_what_is_at_work_is_not_sent_to_resume(before: tuple[Store, RunFolder]) -> None:
    store, run = before
    pack = run.plan().chosen("pack")[0]
    store.artifact(pack.stage, pack.key).storage.delete("MANIFEST.json")
    said = {
        is_alive: next(v.problems for v in verify(run, store, is_alive=is_alive) if v.problems)
        for is_alive in (False, True)
    }
    assert said[False] == ("not complete; `orchestrator resume` finishes it",)
    assert said[True] == ("not complete; the run is at work on it",)
