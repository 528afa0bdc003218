"""Members of a tar are the files that unpacking it leaves, and none is lost without a word."""

from __future__ import annotations

import io
import subprocess
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.audio.tars import Member, members, unpacked

Fill = Callable[[tarfile.TarFile], object]


def archive(*names: str, fill: Fill = bool, form: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar whose members hold their own names."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name in names:
            info, data = tarfile.TarInfo(name), name.encode(errors="surrogateescape")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        fill(tar)
    return file.getvalue()


def special(name: str, kind: bytes, target: str = "") -> Fill:
    """A member that is no file."""

    def add(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, target
        tar.addfile(info)

    return add


def found(data: bytes) -> dict[str, str]:
    """What each member holds, or why it cannot be read."""
    return {
        m.path: m.problem or data[m.offset : m.offset + m.size].decode(errors="surrogateescape")
        for m in members(io.BytesIO(data))
    }


LONG = f"en/{'x' * 90}/{'y' * 120}/{'z' * 100}.wav"


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize(
    "name", [LONG, "en/caf\udce9.wav", "en/a\nb.wav", "en/a\tb.wav", "a%b.wav"]
)
def test_names_of_any_length_and_bytes(name: str, form: int) -> None:
    assert found(archive(name, form=form)) == {name: name}


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("/en/a.wav", "en/a.wav"),
        ("././en//a.wav", "en/a.wav"),
        ("../../en/a.wav", "en/a.wav"),
        ("en/../fr/./a.wav", "fr/a.wav"),
    ],
)
def test_nothing_is_put_above_the_folder(name: str, path: str) -> None:
    assert unpacked(name) == path
    assert found(archive(name)) == {path: name}


def test_what_is_hidden_is_nobodys() -> None:
    data = archive("en/.a.wav", ".x/b.wav", "en/._c.wav", "__MACOSX/en/._d.wav", "en/ok.wav")
    assert found(data) == {"en/ok.wav": "en/ok.wav"}


@pytest.mark.parametrize(
    ("kind", "target", "holds"),
    [
        (tarfile.LNKTYPE, "en/a.wav", "en/a.wav"),
        (tarfile.LNKTYPE, ".hidden/b.wav", ".hidden/b.wav"),
        (tarfile.SYMTYPE, "a.wav", "en/a.wav"),
        (tarfile.SYMTYPE, "../fr/./c.wav", "fr/c.wav"),
        (tarfile.SYMTYPE, "gone.wav", "a dead link"),
        (tarfile.SYMTYPE, "/en/a.wav", "a dead link"),
        (tarfile.SYMTYPE, "../../en/a.wav", "a dead link"),
        (tarfile.SYMTYPE, "link.wav", "a dead link"),
        (tarfile.FIFOTYPE, "", "no regular file"),
        (tarfile.CHRTYPE, "", "no regular file"),
    ],
)
def test_links_are_what_they_stand_for(kind: bytes, target: str, holds: str) -> None:
    data = archive(
        "en/a.wav", ".hidden/b.wav", "fr/c.wav", fill=special("en/link.wav", kind, target)
    )
    assert found(data)["en/link.wav"] == holds


@pytest.mark.parametrize(
    ("target", "holds"),
    [
        ("en", ["link/a.wav", "link/x/b.wav"]),
        ("./fr/../en/x", ["link/b.wav"]),
        ("to/x", ["link/b.wav"]),
        (".hidden", ["link/c.wav"]),
        (".", []),
        ("/mnt/en", ["link"]),
    ],
)
def test_a_link_to_a_folder_is_all_that_is_in_it(target: str, holds: list[str]) -> None:
    def fill(tar: tarfile.TarFile) -> None:
        special("link", tarfile.SYMTYPE, target)(tar)
        special("to", tarfile.SYMTYPE, "en")(tar)
        special("en/up", tarfile.SYMTYPE, "../en")(tar)

    names = ("en/a.wav", "en/x/b.wav", "en/x/.b.wav", ".hidden/c.wav")
    paths = list(found(archive(*names, fill=fill)))
    own = ["en/a.wav", "en/x/b.wav", "to/a.wav", "to/x/b.wav"]
    assert sorted(paths) == sorted([*own, *holds])


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_a_member_without_its_zeros_is_named(tmp_path: Path, form: str) -> None:
    with (tmp_path / "holes.wav").open("wb") as file:
        file.write(b"begin")
        file.truncate(1 << 20)
    (tmp_path / "plain.wav").write_bytes(b"plain")
    command = ["tar", "-S", f"--format={form}", "-cf", "a.tar", "holes.wav", "plain.wav"]
    subprocess.run(command, cwd=tmp_path, check=True)
    said = found((tmp_path / "a.tar").read_bytes())
    assert said == {
        "holes.wav": "packed without its zeros (tar --sparse)",
        "plain.wav": "plain.wav"[:5],
    }


def test_tars_one_after_the_other_are_read_to_the_last() -> None:
    data = b"".join(archive(f"en/{n}.wav") for n in range(3))
    assert list(found(data)) == ["en/0.wav", "en/1.wav", "en/2.wav"]
    assert found(archive()) == {}


WHOLE = archive("en/a.wav", "en/b.wav", "en/c.wav")
HEADER = 1024
"""Where the header of the second member begins."""


@pytest.mark.parametrize(
    "size", [0, 1, 511, 512, 600, HEADER - 1, HEADER, HEADER + 1, HEADER + 512, 3 * HEADER]
)
def test_a_tar_that_breaks_off_is_none(size: int) -> None:
    with pytest.raises(tarfile.TarError):
        list(members(io.BytesIO(WHOLE[:size])))


@pytest.mark.parametrize("harm", ["zeros", "a bit", "junk behind", "no tar"])
def test_what_is_damaged_is_no_smaller_corpus(harm: str) -> None:
    data = bytearray(WHOLE)
    if harm == "zeros":
        data[HEADER : HEADER + 512] = bytes(512)
    elif harm == "a bit":
        data[HEADER + 3] ^= 1
    elif harm == "junk behind":
        data += b"junk" * 1000
    else:
        data[:512] = b"x" * 512
    with pytest.raises(tarfile.TarError):
        list(members(io.BytesIO(bytes(data))))


def test_memory_holds_no_members() -> None:
    names = [f"en/{number:05d}.wav" for number in range(5_000)]
    file = io.BytesIO(archive(*names))
    tracemalloc.start()
    assert sum(1 for _ in members(file)) == len(names)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 100 * len(names)


def test_places_of_members_are_in_the_whole_file() -> None:
    data = archive("a.wav") + archive("b.wav")
    (*_, last) = members(io.BytesIO(data))
    assert last == Member("b.wav", 5, "", len(archive("a.wav")) + 512)
