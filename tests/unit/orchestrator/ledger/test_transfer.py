"""What arrives in another store is what was read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from orchestrator.errors import CorruptError, LeaseHeldError
from orchestrator.ledger.storage import Storage
from orchestrator.ledger.transfer import Transfer

FILES = {f"f/{n:02d}": bytes([n]) * (n * 1000) for n in range(20)}


def digests(files: dict[str, bytes]) -> dict[str, str]:
    return {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}


@pytest.fixture(params=["to a bucket", "from a bucket"])
def storages(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Storage, Storage]:
    """From where and to where."""
    urls = [str(tmp_path / "a"), f"memory://transfer/{tmp_path.name}"]
    ordered = urls if request.param == "to a bucket" else urls[::-1]
    source, target = (Storage(url) for url in ordered)
    for path, data in FILES.items():
        source.create(path, data)
    return source, target


def test_all_is_there_and_counted(storages: tuple[Storage, Storage], tmp_path: Path) -> None:
    source, target = storages
    sizes: list[int] = []
    Transfer(tmp_path, copied=sizes.append).copy(source, target, digests(FILES))
    assert sum(sizes) == sum(map(len, FILES.values()))
    assert {p: target.read_bytes(p) for p in target.list()} == FILES
    assert list(tmp_path.glob("tmp*")) == []


@pytest.mark.parametrize("left", [b"", b"torn", bytes([8]) * 7000, bytes([7]) * 7000])
def test_what_is_there_is_compared(
    storages: tuple[Storage, Storage], tmp_path: Path, left: bytes
) -> None:
    source, target = storages
    target.create("f/07", left)
    Transfer(tmp_path).copy(source, target, digests(FILES))
    assert target.read_bytes("f/07") == FILES["f/07"]


def test_other_bytes_than_the_digest_says_are_not_written(
    storages: tuple[Storage, Storage], tmp_path: Path
) -> None:
    source, target = storages
    source.replace("f/07", b"\x08" + FILES["f/07"][1:])
    with pytest.raises(CorruptError) as raised:
        Transfer(tmp_path).copy(source, target, digests(FILES))
    assert str(raised.value) == f"{source.url}/f/07: bytes differ from the manifest's sha256"
    assert not target.exists("f/07")


def test_a_missing_file_counts_where_it_has_a_digest(
    storages: tuple[Storage, Storage], tmp_path: Path
) -> None:
    source, target = storages
    source.delete("f/07")
    Transfer(tmp_path).copy(source, target, dict.fromkeys(FILES, ""))
    assert target.list().keys() == FILES.keys() - {"f/07"}
    with pytest.raises(FileNotFoundError):
        Transfer(tmp_path).copy(source, target, digests(FILES))


def test_who_may_not_go_on_writes_nothing(
    storages: tuple[Storage, Storage], tmp_path: Path
) -> None:
    def keep() -> None:
        raise LeaseHeldError("lost")

    source, target = storages
    with pytest.raises(LeaseHeldError):
        Transfer(tmp_path, keep=keep).copy(source, target, digests(FILES))
    assert target.list() == {}
