"""Small trees in the layouts in which corpora are published; of audio only the name matters."""

from __future__ import annotations

import gzip
import json
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

from jobs.audio.corpora import adapter
from jobs.audio.corpora.recording import Recording
from jobs.audio.trees import FolderTree, TarTree

AUDIO = b"fLaC"


def write(root: Path, files: Mapping[str, bytes | str]) -> Path:
    """Files below a root."""
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def as_tars(folder: Path, root: Path, is_member: Callable[[str], bool]) -> Path:
    """The same tree with some files in one tar per first folder."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            continue
        if not is_member(name):
            write(root, {name: path.read_bytes()})
            continue
        root.mkdir(exist_ok=True)
        with tarfile.open(root / f"{name.partition('/')[0]}.tar", "a") as tar:
            tar.add(path, name)
    return root


def listed(name: str, root: Path) -> list[Recording]:
    """What an adapter finds in folders."""
    return list(adapter(name)(FolderTree(root)))


def listed_in_tars(name: str, root: Path) -> list[Recording]:
    """The same in tars."""
    return list(adapter(name)(TarTree(root)))


def json_lines(*rows: Mapping[str, object]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def gzipped(text: str) -> bytes:
    return gzip.compress(text.encode(), mtime=0)  # ids of tests are made of it
