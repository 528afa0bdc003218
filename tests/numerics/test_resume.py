"""A training that was killed, moved or poisoned and resumed equals one that never was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.lm.task import LanguageModel
from jobs.training.group import RankGroup
from jobs.training.rank import RankConfig
from orchestrator.ledger import checkpoints
from orchestrator.ledger.coverage import replay
from tests.training import Training, finish, make_inputs

pytestmark = pytest.mark.slow
EVERY = 8


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module", params=[0, 1, 2, 3], ids="ZeRO {}".format)
def whole(
    request: pytest.FixtureRequest, inputs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Training:
    """A training of two ranks that nothing happened to, at each ZeRO stage."""
    root = tmp_path_factory.mktemp("whole") / "run"
    training = Training(inputs=inputs, root=root, zero_stage=request.param, global_batch=12)
    assert training.run() == [0, 0]
    return training


def test_killed_and_resumed_is_bit_identical(whole: Training, tmp_path: Path) -> None:
    broken = replace(whole, root=tmp_path / "broken")
    ranks = broken.start()
    broken.kill_after(2 * EVERY, ranks[1])
    assert all(code != 0 for code in finish(ranks)), "a rank went on without its peer"
    newest = checkpoints.committed(broken.out)[-1]
    assert newest.step < broken.steps, "the kill came too late to prove anything"
    assert broken.run(2) == [0, 0]
    assert broken.live(2)["resumed_from"] == newest.name
    assert broken.results() == whole.results()
    assert [line["step"] for line in broken.lines()] == list(range(1, broken.steps + 1))


@pytest.mark.parametrize("whole", [1], ids="ZeRO {}".format, indirect=True)
def test_more_steps_are_those_of_a_straight_training_through_two_kills(
    whole: Training, tmp_path: Path
) -> None:
    """20 steps, the last of them validated out of turn; then 48 that go on from them."""
    shorter, longer = (whole.in_store(tmp_path, steps) for steps in (20, whole.steps))
    assert shorter.run() == [0, 0]
    assert [line["step"] for line in shorter.lines("validation")] == [12, 20]
    assert longer.extend()["step"] == 20
    for lease_n in (1, 2):
        ranks = longer.start(lease_n)
        longer.kill_after((2 + lease_n) * EVERY, ranks[lease_n - 1], lease_n)
        finish(ranks)
    assert longer.run(3) == [0, 0]
    assert longer.results() == whole.results()
    facts = longer.out.read_json("training.json")
    assert [(s["artifact"], s["first_step"]) for s in facts["history"]][:2] == [
        (f"train-{shorter.out.url.rsplit('/')[-1]}", 1),
        ("", 21),
    ]
    assert replay(facts, longer.lines(), longer.steps).startswith("each of ")


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_a_harmed_checkpoint_is_refused_named_and_passed_over(
    inputs: Path, tmp_path: Path, harm: str
) -> None:
    training = Training(inputs=inputs, root=tmp_path, zero_stage=1)
    ranks = training.start()
    training.kill_after(2 * EVERY, ranks[0])
    finish(ranks)
    *_, before, newest = checkpoints.committed(training.out)
    name = next(n for n in newest.files if "optim_states" in n)
    path = tmp_path / "out" / checkpoints.FOLDER / newest.name / name
    data = path.read_bytes()
    if harm == "remove":
        path.unlink()
    else:
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        path.write_bytes(flipped if harm == "flip" else data[:-1])
    assert training.run(2) == [0, 0]
    said = {"flip": "bytes differ", "truncate": f"{len(data) - 1} bytes", "remove": "missing"}
    (problem,) = training.live(2)["refused"]
    assert name in problem
    assert said[harm] in problem
    assert training.live(2)["resumed_from"] == before.name


def test_another_number_of_ranks_goes_on_with_the_same_batches(
    whole: Training, tmp_path: Path
) -> None:
    """2 -> 1 -> 3 ranks against 2 throughout."""
    moved = replace(whole, root=tmp_path / "moved")
    for lease_n, world_size in ((1, 2), (2, 1)):
        ranks = moved.start(lease_n, world_size=world_size)
        moved.kill_after(2 * EVERY * lease_n, ranks[0], lease_n)
        finish(ranks)
    assert moved.run(3, world_size=3) == [0, 0, 0]
    assert "-a0002" in moved.live(3)["resumed_from"]
    worlds = [s["world_size"] for s in moved.out.read_json("training.json")["history"]]
    assert worlds == [2, 1, 3]
    assert [a["sample_hash"] for a in moved.lines()] == [b["sample_hash"] for b in whole.lines()]
    for name in ("loss", "grad_norm"):
        np.testing.assert_allclose(
            [a[name] for a in moved.lines()], [b[name] for b in whole.lines()], rtol=1e-4
        )


class WholeOnFirst(LanguageModel):
    """As the language model; no rank but the first may build it whole."""

    def __init__(self, config: RankConfig, group: RankGroup) -> None:
        super().__init__(config, group)
        self.is_first = group.leads

    def build_model(self) -> Any:
        assert self.is_first
        return super().build_model()


class TrainingOfShells(Training):
    def trained(self) -> dict[str, Any]:
        return {**super().trained(), "task": f"{WholeOnFirst.__module__}:{WholeOnFirst.__name__}"}


def test_at_zero_3_the_first_rank_alone_has_the_whole_model(inputs: Path, tmp_path: Path) -> None:
    """Its weights reach the others: the losses are those of two ranks that built it both."""
    options = {"inputs": inputs, "steps": 10, "every_steps": 10}
    shells = TrainingOfShells(root=tmp_path / "3", zero_stage=3, **options)
    both = Training(root=tmp_path / "2", zero_stage=2, **options)
    assert (shells.run(), both.run()) == ([0, 0], [0, 0])
    losses = ([line["loss"] for line in training.lines()] for training in (shells, both))
    np.testing.assert_allclose(*losses, rtol=1e-4)


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_batches_without_a_finite_loss_are_rolled_back_and_passed_over(
    inputs: Path, tmp_path: Path, zero_stage: int
) -> None:
    training = Training(inputs=inputs, root=tmp_path, zero_stage=zero_stage, max_nonfinite_in_row=1)
    poison = {"kind": "nan", "positions": [*range(80, 96), 200]}  # steps 11 and 12; 26 alone
    assert training.run(fault=poison) != [0, 0]
    assert checkpoints.skipped(training.out) == set(range(80, 96))
    assert training.run(2, fault=poison) == [0, 0]
    assert training.live(2)["resumed_from"] == checkpoints.name_of(8, 1)
    lines = training.lines()
    assert [line["step"] for line in lines] == list(range(1, training.steps + 1))
    # Two batches later than before the skips, step 24 meets the poison that comes alone.
    assert [line["step"] for line in lines if line["loss"] is None] == [24]
    said = training.out.read_json("training.json")
    assert said["skips"] == list(range(80, 96))
    assert np.mean([line["loss"] for line in lines[-5:]]) < lines[0]["loss"]


def test_a_last_batch_without_a_finite_loss_still_ends_the_training_whole(
    inputs: Path, tmp_path: Path
) -> None:
    training = Training(inputs=inputs, root=tmp_path, steps=10)
    poison = {"kind": "nan", "positions": [79]}  # step 10, two after the last checkpoint
    assert training.run(fault=poison) == [0, 0]
    assert [line["step"] for line in training.lines()] == list(range(1, 11))
    assert training.lines()[-1]["loss"] is None
    assert checkpoints.committed(training.out)[-1].step == 10


def test_when_no_checkpoint_verifies_nothing_is_begun_anew(inputs: Path, tmp_path: Path) -> None:
    training = Training(inputs=inputs, root=tmp_path)
    ranks = training.start()
    training.kill_after(2 * EVERY, ranks[0])
    finish(ranks)
    kept = [m.name for m in checkpoints.committed(training.out)]
    for path in (tmp_path / "out" / "metrics").iterdir():
        path.write_bytes(b"{}")
    assert all(training.run(2))
    assert [m.name for m in checkpoints.committed(training.out)] == kept
    log = (tmp_path / "attempt-2" / "rank-00000.log").read_text()
    assert f"none of {len(kept)} checkpoints verifies" in log
