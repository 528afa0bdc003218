"""The same recording wherever its bytes are: alone, in a tar, in Parquet, and entered anywhere."""

from __future__ import annotations

import pickle
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from jobs.audio.corpora import adapter
from jobs.audio.corpora.recording import stem
from jobs.audio.decode import UnreadableAudioError, blocks
from jobs.audio.decoders import Decoders
from jobs.audio.headers import as_blocks
from jobs.audio.place import Place
from jobs.audio.trees import FolderTree, ParquetTree, TarTree, Tree
from orchestrator.errors import DataError
from tests.unit.jobs.audio.corpora.layouts import as_tars, gzipped, json_lines
from tests.unit.jobs.audio.corpora.test_layouts import recording_of

NAMES = ("en/bob/long.flac", "en/bob/short.wav", "es/ana/one.ogg", "es/ana/two.mp3")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of one's own."""
    root, rng = tmp_path_factory.mktemp("corpus") / "folders", np.random.default_rng(0)
    for seconds, rate_hz, name in zip((70, 2, 40, 35), (8000, 44_100, 16_000, 22_050), NAMES,
                                      strict=True):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / name, rng.uniform(-0.5, 0.5, seconds * rate_hz), rate_hz)
    return root


def speaker_of(name: str) -> str:
    """As the folder of a file names it."""
    return str(PurePosixPath(name).parent)


def in_folders(folders: Path, _: Path) -> tuple[str, Tree]:
    return "folder", FolderTree(folders)


def in_tars(folders: Path, to: Path) -> tuple[str, Tree]:
    return "folder", TarTree(as_tars(folders, to / "tars", lambda _: True))


def in_parquet(folders: Path, to: Path, names: Sequence[str] = NAMES) -> tuple[str, Tree]:
    audio = [{"bytes": (folders / name).read_bytes(), "path": name} for name in names]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"audio": pa.array(audio, kind), "speaker": [speaker_of(n) for n in names]})
    pq.write_table(table, to / "a.parquet", row_group_size=3)
    return "hf_parquet", ParquetTree(to)


def in_a_manifest(folders: Path, to: Path) -> tuple[str, Tree]:
    (to / "audio").symlink_to(folders)
    rows = [
        {"audio_filepath": f"audio/{name}", "id": stem(name), "speaker": speaker_of(name)}
        for name in NAMES
    ]
    (to / "manifest.jsonl").write_text(json_lines(*rows))
    return "manifest", FolderTree(to)


def in_shar(folders: Path, to: Path) -> tuple[str, Tree]:
    with tarfile.open(to / "recording.000000.tar", "w") as tar:
        for name in NAMES:
            tar.add(folders / name, name)
    cuts = [
        {"id": (cut := stem(name)), "start": 0, "duration": 1.0,
         "supervisions": [{"speaker": speaker_of(name)}],
         "recording": recording_of(cut, "shar", "", 1.0)}
        for name in NAMES
    ]  # fmt: skip
    (to / "cuts.000000.jsonl.gz").write_bytes(gzipped(json_lines(*cuts)))
    return "lhotse", TarTree(to)


@pytest.fixture(scope="module")
def decoders() -> Iterator[Decoders]:
    made = Decoders(1)
    yield made
    made.close()


@pytest.fixture(scope="module")
def expected(folders: Path) -> dict[str, list[bytes]]:
    """Blocks of each recording by its id."""
    return {
        name.partition(".")[0]: [block.tobytes() for block in blocks(folders / name)]
        for name in NAMES
    }


@pytest.mark.parametrize("container", [in_folders, in_tars, in_parquet, in_a_manifest, in_shar])
def test_a_corpus_is_the_same_in_every_container(
    container: Callable[[Path, Path], tuple[str, Tree]],
    folders: Path,
    expected: dict[str, list[bytes]],
    decoders: Decoders,
    tmp_path: Path,
) -> None:
    name, tree = container(folders, tmp_path)
    found = {recording.id: tree.place(recording.leaf) for recording in adapter(name)(tree)}
    assert found.keys() == expected.keys()
    for recording, place in found.items():
        again = pickle.loads(pickle.dumps(place))
        for first in range(len(expected[recording])):
            read = [block.tobytes() for block in decoders.blocks(again, first=first)]
            assert read == expected[recording][first:], (recording, first)


@pytest.mark.parametrize("container", [in_tars, in_parquet])
def test_what_is_cut_short_is_so_in_every_container(
    container: Callable[[Path, Path], tuple[str, Tree]], folders: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    for name in NAMES:
        (cut / name).parent.mkdir(parents=True, exist_ok=True)
        data = (folders / name).read_bytes()
        (cut / name).write_bytes(data[: len(data) * 2 // 3])
    (tmp_path / "out").mkdir()
    _, tree = container(cut, tmp_path / "out")
    leaves = [leaf for leaf in tree.leaves() if leaf.is_audio]
    assert len(leaves) == len(NAMES)
    for leaf in leaves:
        with pytest.raises(UnreadableAudioError) as alone:
            list(blocks(cut / leaf.path))
        with pytest.raises(UnreadableAudioError, match=leaf.path) as within:
            list(blocks(tree.place(leaf)))
        assert within.value.reason == alone.value.reason


@pytest.mark.parametrize("damage", ["its pages", "its end", "its table of contents"])
def test_a_parquet_file_that_is_damaged_is_no_verdict_on_its_recordings(
    folders: Path, decoders: Decoders, tmp_path: Path, damage: str
) -> None:
    _, tree = in_parquet(folders, tmp_path)
    place = tree.place(next(iter(tree.leaves())))
    data = (tmp_path / "a.parquet").read_bytes()
    damaged = {
        "its pages": data[:4] + bytes(60) + data[64:],
        "its end": data[: len(data) // 2],
        "its table of contents": data[:-200] + bytes(192) + data[-8:],
    }
    (tmp_path / "a.parquet").write_bytes(damaged[damage])
    for form in (decoders, Decoders(1, decode=as_blocks)):
        with pytest.raises(DataError, match=r"a\.parquet: .*; fetch it again") as said:
            list(form.blocks(place))
        assert len(str(said.value).splitlines()) == 1


def test_it_says_how_many_bytes_it_has(folders: Path, tmp_path: Path) -> None:
    whole = Place.of(folders / NAMES[1])
    size = (folders / NAMES[1]).stat().st_size
    assert whole.num_bytes() == size
    for container in (in_tars, in_parquet):
        (tmp_path / container.__name__).mkdir()
        _, tree = container(folders, tmp_path / container.__name__)
        sizes = {leaf.path: tree.place(leaf).num_bytes() for leaf in tree.leaves()}
        assert sizes[NAMES[1]] == size
