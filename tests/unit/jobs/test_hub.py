"""Models that the store keeps."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from jobs.hub import keep, put
from orchestrator.errors import Cause, CorruptError, RequestError, cause_of
from orchestrator.ledger.path_store import TEMPORARY
from orchestrator.ledger.storage import Storage
from tests.unit.jobs.test_attempt import attempt_in

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.json": b"{}", "model.safetensors": b"weights"}


def kept_in(folder: Path) -> tuple[Any, Storage]:
    """An attempt whose store keeps a model already."""
    attempt = attempt_in(folder)
    storage = Storage(str(folder)).at("models", "org--model-a5d33b0cefe2")
    entries = {}
    for name, data in FILES.items():
        storage.create(name, data)
        entries[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    storage.create_json("MANIFEST.json", {"name": "org/model", "files": entries})
    return attempt, storage


def test_what_the_store_keeps_is_not_fetched_again_and_is_checked(tmp_path: Path) -> None:
    attempt, storage = kept_in(tmp_path)
    digest = hashlib.sha256(FILES["model.safetensors"]).hexdigest()
    where = "model.text_model"
    assert keep(attempt, "org/model", COMMIT, sha256=digest, where=where).url == storage.url
    with pytest.raises(CorruptError, match=r"model\.text_model: .* the recipe says 0000") as raised:
        keep(attempt, "org/model", COMMIT, sha256="0" * 64, where=where)
    assert cause_of(raised.value) is Cause.BAD_REQUEST
    storage.replace("model.safetensors", FILES["model.safetensors"][:-1] + b"x")
    with pytest.raises(CorruptError, match="bytes differ from the manifest's sha256; remove"):
        keep(attempt, "org/model", COMMIT, sha256=None, where=where)


def test_half_of_a_model_that_a_killed_process_left_goes_with_the_next_fetch(
    tmp_path: Path,
) -> None:
    fetched, kept = tmp_path / "fetched", tmp_path / "kept"
    for folder in (fetched, kept):
        folder.mkdir()
    for name, data in FILES.items():
        (fetched / name).write_bytes(data)
    for name in ("left", "at-work"):
        (kept / f"{TEMPORARY}{name}").write_bytes(b"half")
    os.utime(kept / f"{TEMPORARY}left", (0, 0))
    put(Storage(str(kept)), fetched, "org/model", COMMIT)
    names = {path.name for path in kept.iterdir()}
    assert names == {*FILES, "MANIFEST.json", f"{TEMPORARY}at-work"}


@pytest.mark.parametrize("manifest", [b"", b"[1]", b"{}", b'{"files": {"config.json": 2}}'])
def test_a_damaged_manifest_is_named_with_what_to_remove(tmp_path: Path, manifest: bytes) -> None:
    attempt, storage = kept_in(tmp_path)
    storage.replace("MANIFEST.json", manifest)
    with pytest.raises(CorruptError, match=rf"{storage.url}/MANIFEST\.json: .*remove"):
        keep(attempt, "org/model", COMMIT, sha256=None, where="model.text_model")


def test_a_path_that_is_no_folder_is_never_asked_for(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no such folder\); check the path"):
        keep(attempt_in(tmp_path), str(tmp_path / "lm"), None, sha256=None, where="x")


def test_weights_in_several_files_have_no_digest_of_their_own(tmp_path: Path) -> None:
    attempt, storage = kept_in(tmp_path)
    manifest = storage.read_json("MANIFEST.json")
    weights = manifest["files"].pop("model.safetensors")
    manifest["files"]["model-00001-of-00001.safetensors"] = weights
    storage.delete("MANIFEST.json")
    storage.delete("model.safetensors")
    storage.create("model-00001-of-00001.safetensors", FILES["model.safetensors"])
    storage.create_json("MANIFEST.json", manifest)
    with pytest.raises(RequestError, match=r"sha256 cannot pin, .*; give revision without it"):
        keep(attempt, "org/model", COMMIT, sha256="0" * 64, where="model.text_model")
    assert keep(attempt, "org/model", COMMIT, sha256=None, where="x").url == storage.url
