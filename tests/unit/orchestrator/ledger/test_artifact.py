"""An artifact is what its manifest says, or says how it differs."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from orchestrator.errors import CorruptError
from orchestrator.ledger.artifact import Artifact
from orchestrator.ledger.storage import Storage
from orchestrator.plan.keys import key_of

INPUTS = {"stage": "pack", "version": 1, "fields": {}, "upstream": {}}
KEY = key_of(INPUTS)


@pytest.fixture
def artifact(storage: Storage) -> Artifact:
    artifact = Artifact("pack", KEY, storage)
    artifact.begin(INPUTS)
    storage.create("train.bin", b"0123456789")
    storage.create("shards/000/000001.parquet", b"abc")
    storage.create("lease/000001.json", b"{}")
    storage.create("checkpoints/step-1/weights", b"w")
    return artifact


def publish(artifact: Artifact, **facts: object) -> None:
    artifact.publish(inputs=INPUTS, facts=facts, producer={"run": "r"})


def test_it_is_complete_once_published(artifact: Artifact) -> None:
    assert not artifact.is_complete()
    publish(artifact, num_tokens=5)
    assert artifact.is_complete()
    assert artifact.facts == {"num_tokens": 5}
    manifest = artifact.manifest()
    assert {k: manifest[k] for k in ("stage", "key", "inputs", "producer")} == {
        "stage": "pack", "key": KEY, "inputs": INPUTS, "producer": {"run": "r"},
    }  # fmt: skip
    assert {p: e["size"] for p, e in manifest["files"].items()} == {
        "shards/000/000001.parquet": 3,
        "train.bin": 10,
    }
    assert list(artifact.problems()) == []


def test_an_unpublished_one_has_no_manifest(artifact: Artifact) -> None:
    with pytest.raises(FileNotFoundError):
        artifact.manifest()


def test_the_first_manifest_and_the_first_inputs_stay(artifact: Artifact) -> None:
    publish(artifact, first=True)
    publish(artifact, first=False)
    artifact.begin({"other": 1})
    assert artifact.facts == {"first": True}
    assert artifact.storage.read_json("inputs.json") == INPUTS


def test_a_flipped_byte(artifact: Artifact) -> None:
    publish(artifact)
    artifact.storage.replace("train.bin", b"0123456788")
    url = artifact.storage.url
    assert list(artifact.problems()) == [
        f"{url}/train.bin: bytes differ from the manifest's sha256"
    ]


def test_a_truncated_file(artifact: Artifact) -> None:
    publish(artifact)
    artifact.storage.replace("train.bin", b"01234")
    url = artifact.storage.url
    assert list(artifact.problems()) == [f"{url}/train.bin: 5 bytes, the manifest says 10"]


def test_a_missing_file(artifact: Artifact) -> None:
    publish(artifact)
    artifact.storage.delete("shards/000/000001.parquet")
    url = artifact.storage.url
    assert list(artifact.problems()) == [f"{url}/shards/000/000001.parquet: missing"]


def test_work_in_progress_may_go_without_a_problem(artifact: Artifact) -> None:
    publish(artifact)
    artifact.storage.delete("checkpoints/step-1/weights")
    artifact.storage.create("left-behind", b"x")
    assert list(artifact.problems()) == []


def test_another_keys_folder_is_corrupt(artifact: Artifact) -> None:
    publish(artifact)
    other = Artifact("pack", "0" * 64, artifact.storage)
    with pytest.raises(CorruptError) as raised:
        other.manifest()
    url = artifact.storage.url
    assert str(raised.value) == (f"{url}: holds key {KEY}, not {'0' * 64}; move the folder away")


@pytest.mark.parametrize("content", [b"{}", b"[]", b"null", b"", b'{"key'])
def test_a_broken_manifest_is_corrupt(storage: Storage, content: bytes) -> None:
    storage.create("MANIFEST.json", content)
    with pytest.raises(CorruptError):
        Artifact("pack", KEY, storage).manifest()


@pytest.mark.parametrize(
    ("path", "listed"),
    [
        ("train.bin", True),
        ("shards/000/000000.parquet", True),
        ("metrics.jsonl", True),
        ("inputs.json", False),
        ("lease/000001.json", False),
        ("checkpoints/step-1/a", False),
        ("pretrain/x", False),
        ("metrics/0001.jsonl", False),
    ],
)
def test_what_belongs_to_a_finished_artifact(storage: Storage, path: str, listed: bool) -> None:
    artifact = Artifact("pack", KEY, storage)
    storage.create(path, b"x")
    for _ in range(2):  # the manifest that is there then stays
        publish(artifact)
        assert list(artifact.manifest()["files"]) == ([path] if listed else [])


def test_a_manifest_can_be_read_by_people(tmp_path: Path) -> None:
    artifact = Artifact("pack", KEY, Storage(str(tmp_path)))
    publish(artifact)
    assert (tmp_path / "MANIFEST.json").read_text().startswith('{\n "facts": {},\n "files": {},')


class FarStorage(Storage):
    """A folder whose files are hashed four at a time or never, as if each hash were far away."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._together = threading.Barrier(4)

    def digest(self, path: str) -> str:
        """As it is, when four wait for one."""
        self._together.wait(timeout=10)
        return super().digest(path)


@pytest.mark.parametrize("num_files", [4, 20, 1_028])
def test_files_are_hashed_together(tmp_path: Path, num_files: int) -> None:
    near = Artifact("tokenize", key_of(INPUTS), Storage(str(tmp_path)))
    for number in range(num_files):
        (tmp_path / f"{number:04d}").write_bytes(b"%d" % number)
    far = Artifact("tokenize", near.key, FarStorage(str(tmp_path)))
    far.publish(inputs=INPUTS, facts={}, producer={})
    assert list(near.manifest()["files"]) == [f"{number:04d}" for number in range(num_files)]
    assert list(near.problems()) == []
