"""Members of an uncompressed tar, as the files that unpacking it would leave.

In: a file. Out: of each member its path, where its bytes lie, and why nobody can read them there.
What unpacking would leave out, or would not notice, is no smaller corpus: links lead to what they
stand for, tars joined end to end are read to the last, and one that breaks off is an error.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping
from typing import BinaryIO, NamedTuple

_BLOCK = tarfile.BLOCKSIZE
_WINDOW = 1 << 20
_ROOT = "."
DEAD_LINK = "a dead link"
"""The problem of a link to what is not in the tar."""


class Member(NamedTuple):
    """A file of a tar."""

    path: str
    """Below the folder where it is unpacked."""
    size: int
    """In bytes."""
    problem: str = ""
    """Why it cannot be read; empty for a file."""
    offset: int = 0
    """Where its bytes begin."""


def members(file: BinaryIO) -> Iterator[Member]:
    """All but folders and what is hidden, links last.

    Raises tarfile.TarError for what is no tar, is compressed, damaged or cut.
    """
    links: dict[str, str] = {}
    for info in _infos(file):
        path = unpacked(info.name)
        if info.islnk():
            links[path] = unpacked(info.linkname)
        elif info.issym():
            is_outside = info.linkname.startswith("/")
            links[path] = "" if is_outside else _joined(path, info.linkname)
        elif not info.isdir() and not _is_hidden(path):
            yield _member(path, info)
    yield from _linked(file, links)


def unpacked(name: str) -> str:
    """Where a member of this name is put: never above the folder, whatever it says."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    while ".." in parts:
        parts = parts[parts.index("..") + 1 :]
    return "/".join(parts)


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _member(path: str, info: tarfile.TarInfo) -> Member:
    if not info.isfile():
        return Member(path, 0, "no regular file")
    if info.issparse():
        return Member(path, 0, "packed without its zeros (tar --sparse)")
    return Member(path, info.size, "", info.offset_data)


def _linked(file: BinaryIO, links: Mapping[str, str]) -> Iterator[Member]:
    """What links stand for: files, and all that is in a folder."""
    ends = {path: _end(path, links) for path in links if not _is_hidden(path)}
    wanted = frozenset(ends.values()) - {""}
    found: dict[str, list[Member]] = {}
    for member in _regular(file) if wanted else ():
        for way in wanted.intersection(_ways(member.path)):
            found.setdefault(way, []).append(member)
    for path, end in ends.items():
        if end == _ROOT or path.startswith(f"{end}/"):  # a folder within itself
            continue
        for member in found.get(end, [Member(end, 0, DEAD_LINK)]):
            if not _is_hidden(below := path + member.path[len(end) :]):
                yield member._replace(path=below)


def _ways(path: str) -> Iterator[str]:
    """A path, and those of the folders that it is in."""
    parts = path.split("/")
    return ("/".join(parts[:number]) for number in range(1, len(parts) + 1))


def _regular(file: BinaryIO) -> Iterator[Member]:
    """Members that are no links, hidden ones too."""
    for info in _infos(file):
        if not (info.islnk() or info.issym() or info.isdir()):
            yield _member(unpacked(info.name), info)


def _joined(path: str, target: str) -> str:
    """What a link at ``path`` leads to; empty for what is above the tar's own folder."""
    parts = path.split("/")[:-1]
    for part in target.split("/"):
        if part == "..":
            if not parts:
                return ""
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts) or _ROOT


def _end(path: str, links: Mapping[str, str]) -> str:
    """Where link after link ends; empty for what is outside, and for links to each other."""
    passed: set[str] = set()
    while link := next((way for way in _ways(path) if way in links), ""):
        if link in passed or not links[link]:
            return ""
        passed.add(link)
        path = links[link] + path[len(link) :]
    return path


def _infos(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """All members in order, of all tars of which the file is made."""
    at, size = 0, file.seek(0, 2)
    while at < size or not size:
        file.seek(at)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (info := tar.next()) is not None:
                yield info
                # It keeps them all otherwise, a kilobyte each; typeshed does not know.
                tar.members.clear()  # type: ignore[attr-defined]
            at = _after_end(file, tar.offset, size)


def _after_end(file: BinaryIO, end: int, size: int) -> int:
    """Where another tar begins after one that ends there; ``size`` where none does."""
    file.seek(end)
    block = file.read(_BLOCK)
    if len(block) < _BLOCK:
        raise tarfile.ReadError("it ends without a tar's mark of its end")
    if any(block):
        raise tarfile.ReadError(f"damaged at byte {end:,}")
    for start in range(end, size, _WINDOW):
        file.seek(start)
        window = file.read(_WINDOW)
        if rest := window.lstrip(b"\0"):
            return start + (len(window) - len(rest)) // _BLOCK * _BLOCK
    return size
