from __future__ import annotations

from pathlib import Path

import pytest

from jobs.training.uploader import upload_folder
from orchestrator.errors import AlreadyExistsError, CorruptError
from orchestrator.ledger import checkpoints
from orchestrator.ledger.checkpoints import Manifest, Segment
from orchestrator.ledger.storage import Storage
from orchestrator.spec.recipe import Checkpoint
from tests.unit.orchestrator.trainings import nothing, save


@pytest.fixture
def out(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "artifact"))


def names(manifests: list[Manifest]) -> list[str]:
    return [m.name for m in manifests]


def test_a_checkpoint_exists_once_its_manifest_does(out: Storage) -> None:
    first = save(out, 10, 1)
    save(out, 20, 1, first, whole=False)
    assert checkpoints.committed(out) == [first]


def test_it_is_committed_once(out: Storage) -> None:
    first = save(out, 10, 1)
    with pytest.raises(AlreadyExistsError):
        checkpoints.commit(out, first)


def test_newest_first_along_the_chain_of_attempts(out: Storage) -> None:
    one = save(out, 10, 1)
    two = save(out, 20, 1, one)
    three = save(out, 30, 2, two)
    assert checkpoints.resumable(checkpoints.committed(out), (1, 2, 3)) == [three, two, one]


def test_what_a_zombie_wrote_is_not_on_the_chain(out: Storage) -> None:
    one = save(out, 10, 1)
    two = save(out, 20, 2, one)  # attempt 2 took over after step 10 ...
    zombie = save(out, 40, 1, save(out, 30, 1, one))  # ... and attempt 1 went on unaware
    found = checkpoints.committed(out)
    assert zombie in found
    assert checkpoints.resumable(found, (1, 2, 3)) == [two, one]


def test_a_later_lease_is_never_loaded(out: Storage) -> None:
    one = save(out, 10, 1)
    save(out, 20, 3, one)
    assert checkpoints.resumable(checkpoints.committed(out), (1, 2)) == [one]


def test_nothing_to_resume_from(out: Storage) -> None:
    assert checkpoints.resumable(checkpoints.committed(out), (1,)) == []


def test_segments_of_a_chain_have_no_gap_and_no_repeat(out: Storage) -> None:
    one = save(out, 3, 1)
    save(out, 9, 1, one)  # lost: attempt 2 resumed from step 3
    last = save(out, 8, 2, save(out, 6, 2, one))
    lines = checkpoints.join_segments(out, last.metrics).decode().split()
    assert "".join(lines) == "".join(f'{{"step":{n}}}' for n in range(1, 9))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (
            lambda path: path.write_text("step-00000010-a9999"),
            "bytes differ from the manifest's sha256",
        ),
        (lambda path: path.write_text(""), "0 bytes, the manifest says 19"),
        (lambda path: path.unlink(), "missing"),
    ],
)
def test_damage_is_found(out: Storage, tmp_path: Path, damage: object, problem: str) -> None:
    manifest = save(out, 10, 1)
    assert checkpoints.fetch_verified(out, manifest, ["state.pt"], tmp_path) == ""
    damage(Path(out.url) / "checkpoints" / manifest.name / "state.pt")
    assert problem in checkpoints.fetch_verified(out, manifest, ["state.pt"], tmp_path)


def test_what_a_node_has_kept_is_fetched_only_where_it_differs(
    out: Storage, tmp_path: Path
) -> None:
    manifest, remote = save(out, 10, 1), Storage(f"memory://{tmp_path.name}")
    path = f"checkpoints/{manifest.name}/state.pt"
    whole = out.read_bytes(path)
    remote.create(path, whole)
    (kept := tmp_path / "kept" / path).parent.mkdir(parents=True)
    for found in (b"", b"x" * len(whole), None):
        kept.unlink(missing_ok=True) if found is None else kept.write_bytes(found)
        into = tmp_path / "kept"
        assert checkpoints.fetch_verified(remote, manifest, ["state.pt"], into) == ""
        assert kept.read_bytes() == whole
    remote.delete(path)
    assert checkpoints.fetch_verified(remote, manifest, ["state.pt"], tmp_path / "kept") == ""
    kept.write_bytes(b"x" * len(whole))
    assert "missing" in checkpoints.fetch_verified(remote, manifest, ["state.pt"], into)


def test_a_path_that_ranks_read_themselves_is_judged_by_its_own_bytes(
    out: Storage, tmp_path: Path
) -> None:
    manifest = save(out, 10, 1)
    path = f"checkpoints/{manifest.name}/state.pt"
    (kept := tmp_path / path).parent.mkdir(parents=True)
    kept.write_bytes(out.read_bytes(path))
    out.delete(path)
    assert "missing" in checkpoints.fetch_verified(out, manifest, ["state.pt"], tmp_path)


def test_retention_keeps_the_newest_and_the_milestones(out: Storage) -> None:
    last = None
    for step in range(10, 70, 10):
        last = save(out, step, 1, last)
    checkpoints.retire(out, Checkpoint(keep_last=2, keep_every_steps=20), (1,), nothing)
    assert [m.step for m in checkpoints.committed(out)] == [20, 40, 50, 60]
    folders = {path.split("/")[1] for path in out.list("checkpoints")}
    assert folders == set(names(checkpoints.committed(out))), "files were left behind"


def test_retention_removes_what_was_never_committed_by_earlier_attempts(out: Storage) -> None:
    one = save(out, 10, 1)
    save(out, 20, 1, one, whole=False)
    two = save(out, 20, 2, one)
    save(out, 30, 2, two, whole=False)  # being written right now
    checkpoints.retire(out, Checkpoint(), (1, 2), nothing)
    assert out.children("checkpoints") == (
        "step-00000010-a0001",
        "step-00000020-a0002",
        "step-00000030-a0002",
    )


def test_retention_removes_forks_before_ancestors(out: Storage) -> None:
    one = save(out, 10, 1)
    save(out, 40, 1, one)
    two = save(out, 20, 2, one)
    checkpoints.retire(out, Checkpoint(keep_last=2), (1, 2), nothing)
    assert checkpoints.committed(out) == [one, two]


def test_an_upload_tells_size_and_digest_of_every_file(out: Storage, tmp_path: Path) -> None:
    local = tmp_path / "staged"
    local.mkdir()
    (local / "a.pt").write_bytes(b"abc")
    entries = upload_folder(out, local, "step-00000001-a0001", nothing)
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert entries == {"a.pt": {"size": 3, "sha256": sha256}}
    assert out.read_bytes("checkpoints/step-00000001-a0001/a.pt") == b"abc"


def test_floats_keep_every_digit() -> None:
    segment, data = checkpoints.segment("metrics/x.jsonl", [{"loss": 0.1 + 0.2}])
    assert isinstance(segment, Segment)
    assert data == b'{"loss": 0.30000000000000004}\n'


def test_the_skip_list_grows_and_is_never_rewritten(out: Storage) -> None:
    assert checkpoints.skipped(out) == set()
    checkpoints.note_skips(out, [3, 4], at_step=7)
    checkpoints.note_skips(out, [9], at_step=8)
    assert checkpoints.skipped(out) == {3, 4, 9}
    assert out.read_json("notes/skips-0001.json") == {"positions": [3, 4], "at_step": 7}


def test_a_training_has_one_id_for_its_curves(out: Storage, tmp_path: Path) -> None:
    first = checkpoints.curves_id(out)
    assert checkpoints.curves_id(out) == first
    assert checkpoints.curves_id(Storage(str(tmp_path / "other"))) != first
    assert checkpoints.skipped(out) == set()


def test_a_changed_segment_is_refused(out: Storage) -> None:
    last = save(out, 3, 1)
    out.replace(last.metrics[0].path, b"{}")
    with pytest.raises(CorruptError, match="bytes differ from the checkpoint's sha256"):
        checkpoints.join_segments(out, last.metrics)


@pytest.mark.parametrize(
    ("name", "step"), [("step-00000500-a0003", 500), ("step-7-a1", 0), ("", 0), ("universal", 0)]
)
def test_the_step_of_a_name(name: str, step: int) -> None:
    assert checkpoints.step_of(name) == step


def test_the_newest_step_is_that_of_a_whole_checkpoint(out: Storage) -> None:
    assert checkpoints.newest_step(out) == 0
    save(out, 10, 1, save(out, 5, 1))
    save(out, 20, 1, whole=False)
    assert checkpoints.newest_step(out) == 10


def test_the_head_is_the_newest_attempts(out: Storage) -> None:
    assert checkpoints.head_of([]) is None
    one = save(out, 40, 1)
    two = save(out, 20, 2, one)
    assert checkpoints.head_of(checkpoints.committed(out)) == two


def test_a_manifest_that_is_none_is_refused(out: Storage) -> None:
    out.create("checkpoints/step-00000010-a0001/MANIFEST.json", b"{}")
    with pytest.raises(CorruptError, match="is no checkpoint's manifest"):
        checkpoints.committed(out)
