"""A training takes over the newest whole checkpoint of one that differs in its length alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import LeaseHeldError
from orchestrator.ledger import checkpoints, lease
from orchestrator.ledger.artifact import Artifact
from orchestrator.ledger.checkpoints import FOLDER, AttemptSpan, FileEntry, Manifest
from orchestrator.ledger.extension import Candidate, Length, extend
from orchestrator.ledger.storage import Storage, sha256_of
from orchestrator.ledger.store import Store
from orchestrator.plan.keys import key_of
from tests.unit.orchestrator.plan.test_extension import inputs

STEPS, EVERY = 60, 20


@pytest.fixture
def store(storage: Storage) -> Store:
    return Store(storage)


def training(store: Store, steps: int, **overrides: Any) -> Artifact:
    """A training of the small recipe that has begun."""
    made = inputs(**{"train.steps": steps, "train.validate_every_steps": EVERY, **overrides})
    artifact = store.artifact("train", key_of(made))
    artifact.begin(made)
    return artifact


def save(artifact: Artifact, steps: Sequence[int], scratch: Path, **changes: Any) -> list[Manifest]:
    """Checkpoints of a training's first attempt, validated at their last step besides."""
    out, chain = artifact.storage, list[Manifest]()
    for step in steps:
        name, before = checkpoints.name_of(step, 1), chain[-1].step if chain else 0
        state = scratch / f"{artifact.key}-{name}"
        state.write_text(f"state after {step} steps")
        out.upload(state, f"{FOLDER}/{name}/state.pt")
        taken = range(before + 1, step + 1)
        lines = [{"step": n, "loss": None if step in changes.get("nan", ()) else n} for n in taken]
        checked = [{"step": n, "loss": 0.1} for n in taken if n % EVERY == 0 or n == steps[-1]]
        metrics = checkpoints.segment(checkpoints.segment_path(step, 1), lines)
        valid = checkpoints.segment(checkpoints.segment_path(step, 1, validation=True), checked)
        for segment, data in (metrics, valid):
            out.create(segment.path, data)
        manifest = Manifest(
            step=step,
            lease_n=1,
            world_size=2,
            zero_stage=changes.get("zero_stage", 0),
            cursor=4 * step,
            skips=(3, 4),
            sample_hash=f"{step:064x}",
            files={"state.pt": FileEntry(size=state.stat().st_size, sha256=sha256_of(state))},
            metrics=(*(chain[-1].metrics if chain else ()), metrics[0]),
            validation=(*(chain[-1].validation if chain else ()), valid[0]),
            rng={"0": "state.pt"},
            history=(
                AttemptSpan(
                    lease_n=1, first_step=1, world_size=2, zero_stage=0, micro_batch=1, device="cpu"
                ),
            ),
        )
        checkpoints.commit(out, manifest)
        chain.append(manifest)
    return chain


def extended(
    own: Artifact, scratch: Path, *, steps: int = STEPS, lease_n: int = 1, zero_stage: int = 0
) -> tuple[dict[str, Any], list[str]]:
    """What is said of the checkpoint that a training begins with, and of those it refused."""
    problems: list[str] = []
    length = Length(steps=steps, validate_every_steps=EVERY, zero_stage=zero_stage)

    def refused(candidate: Candidate, why: str) -> None:
        problems.append(f"{candidate.manifest.name}: {why}")

    chosen = extend(own, length, lease_n=lease_n, scratch=scratch / "own", refused=refused)
    return (chosen.about if chosen else {}), problems


def lines_of(own: Artifact, manifest: Manifest) -> tuple[list[int], list[int]]:
    """Steps of the metric lines and of the validation lines of a checkpoint."""
    chains = (manifest.metrics, manifest.validation)
    read = (checkpoints.join_segments(own.storage, chain).splitlines() for chain in chains)
    metrics, validation = ([json.loads(line)["step"] for line in lines] for lines in read)
    return metrics, validation


def test_the_newest_checkpoint_becomes_its_own(store: Store, tmp_path: Path) -> None:
    shorter, own = training(store, 30), training(store, STEPS)
    theirs = save(shorter, [10, 20, 30], tmp_path)
    origin = f"train-{shorter.key[:12]}"
    about, problems = extended(own, tmp_path, lease_n=4)
    assert about == {"extends": origin, "checkpoint": "step-00000030-a0001", "step": 30}
    assert problems == []
    (mine,) = checkpoints.committed(own.storage)
    assert checkpoints.resumable([mine], range(1, 5)) == [mine]
    assert lines_of(own, mine) == (list(range(1, 31)), [20]), "the row out of turn is left out"
    assert [span.artifact for span in mine.history] == [origin]
    same = ("step", "cursor", "skips", "sample_hash", "world_size", "files", "rng")
    assert [getattr(mine, name) for name in same] == [getattr(theirs[-1], name) for name in same]
    assert checkpoints.fetch_verified(own.storage, mine, ["state.pt"], tmp_path / "check") == ""
    assert not list((tmp_path / "own").rglob("*.pt")), "a copy was left on the node's disk"


def test_what_becomes_of_the_other_does_not_matter(store: Store, tmp_path: Path) -> None:
    shorter, own = training(store, 30), training(store, STEPS)
    save(shorter, [10, 20], tmp_path)
    extended(own, tmp_path)
    for path in shorter.storage.list():
        shorter.storage.delete(path)
    (mine,) = checkpoints.committed(own.storage)
    assert checkpoints.fetch_verified(own.storage, mine, ["state.pt"], tmp_path / "check") == ""
    assert lines_of(own, mine)[0] == list(range(1, 21))


def test_an_extension_of_an_extension_knows_whose_steps_are_whose(
    store: Store, tmp_path: Path
) -> None:
    first, second, third = (training(store, steps) for steps in (30, 45, STEPS))
    save(first, [10, 30], tmp_path)
    extended(second, tmp_path, steps=45)
    assert extended(third, tmp_path)[0]["extends"] in {
        f"train-{a.key[:12]}" for a in (first, second)
    }
    (mine,) = checkpoints.committed(third.storage)
    assert [span.artifact for span in mine.history] == [f"train-{first.key[:12]}"]


@pytest.mark.parametrize("steps", [30, 31])
def test_of_several_the_newest_step_before_its_own_last(
    store: Store, tmp_path: Path, steps: int
) -> None:
    """A longer one's checkpoints are as good; its last step is not, for it is not validated."""
    save(training(store, 20), [10, 20], tmp_path)
    save(training(store, 90), [15, 30, 90], tmp_path)
    own = training(store, steps)
    assert extended(own, tmp_path, steps=steps)[0]["step"] == (20 if steps == 30 else 30)


def harm(artifact: Artifact, manifest: Manifest, path: str) -> None:
    where = path.format(name=manifest.name)
    data = artifact.storage.read_bytes(where)
    artifact.storage.replace(where, data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize(
    "path",
    [
        "checkpoints/{name}/state.pt",
        "metrics/{name}.jsonl",
        "metrics/{name}-validation.jsonl",
    ],
)
def test_what_does_not_verify_is_passed_over(store: Store, tmp_path: Path, path: str) -> None:
    shorter, own = training(store, 30), training(store, STEPS)
    harm(shorter, save(shorter, [10, 20, 30], tmp_path)[-1], path)
    about, (problem,) = extended(own, tmp_path)
    assert about["step"] == 20
    assert problem.startswith("step-00000030-a0001: ")
    assert "differ" in problem
    assert own.storage.children(FOLDER) == ("step-00000020-a0001",), "parts of it are left"


def test_what_retention_removes_meanwhile_is_looked_for_anew(store: Store, tmp_path: Path) -> None:
    shorter, own = training(store, 30), training(store, STEPS)
    for manifest in save(shorter, [10, 20], tmp_path):
        shorter.storage.delete(f"{FOLDER}/{manifest.name}/state.pt")
    problems: list[str] = []

    def refused(candidate: Candidate, why: str) -> None:
        if not problems:  # the other has gone on
            newer = save(shorter, [25], tmp_path)
            assert newer
        problems.append(why)

    length = Length(steps=STEPS, validate_every_steps=EVERY, zero_stage=0)
    chosen = extend(own, length, lease_n=1, scratch=tmp_path / "own", refused=refused)
    assert chosen is not None
    assert chosen.manifest.step == 25
    assert "missing" in problems[0]


def test_last_steps_without_a_finite_loss_are_no_ones_past(store: Store, tmp_path: Path) -> None:
    shorter, own = training(store, 30), training(store, STEPS)
    save(shorter, [10, 20, 30], tmp_path, nan=(30,))
    about, (problem,) = extended(own, tmp_path)
    assert about["step"] == 20
    assert "no finite loss" in problem


@pytest.mark.parametrize(
    ("other", "own"),
    [
        ({"seed": 7}, {}),
        ({"train.optimizer.lr": 0.5}, {}),
        ({"train.schedule.kind": "constant"}, {}),
        ({"train.schedule.kind": "cosine"}, {"train.schedule.kind": "cosine"}),
    ],
)
def test_nothing_is_taken_from_what_differs_or_depends_on_its_end(
    store: Store, tmp_path: Path, other: dict[str, Any], own: dict[str, Any]
) -> None:
    save(training(store, 30, **other), [10, 20, 30], tmp_path)
    assert extended(training(store, STEPS, **own), tmp_path) == ({}, [])


def test_nothing_is_taken_that_another_zero_stage_wrote(store: Store, tmp_path: Path) -> None:
    save(training(store, 30), [10], tmp_path, zero_stage=2)
    own = training(store, STEPS)
    assert extended(own, tmp_path) == ({}, [])
    assert extended(own, tmp_path, zero_stage=2)[0]["step"] == 10


def test_who_has_checkpoints_goes_on_from_them(store: Store, tmp_path: Path) -> None:
    save(training(store, 30), [10, 20, 30], tmp_path)
    own = training(store, STEPS)
    save(own, [5], tmp_path)
    assert extended(own, tmp_path) == ({}, [])


def test_who_lost_the_right_to_work_commits_nothing(store: Store, tmp_path: Path) -> None:
    save(training(store, 30), [10], tmp_path)
    own = training(store, STEPS)
    for _ in range(2):
        lease.acquire(own.storage, holder="test", timeout_s=60).release()
    with pytest.raises(LeaseHeldError):
        extended(own, tmp_path, lease_n=1)
    assert checkpoints.committed(own.storage) == []
    assert extended(own, tmp_path, lease_n=2)[0]["step"] == 10


def test_a_damaged_relative_is_nobody(store: Store, tmp_path: Path) -> None:
    shorter, own = training(store, 30), training(store, STEPS)
    manifest = save(shorter, [10], tmp_path)[0]
    shorter.storage.replace(f"{FOLDER}/{manifest.name}/MANIFEST.json", b"{}")
    assert extended(own, tmp_path) == ({}, [])
