"""A suite's recordings as shards of units, one pass for all codebooks."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file

from jobs.scoring.suites import open_suite
from jobs.speech.lloyd import Fit
from jobs.speech.units import EncoderSpec, write_codebook
from jobs.suite_units import FILES_PER_SHARD, FileTask, SuiteWorker, shards_of, utterances_of
from jobs.unit_shards import missing_shards
from orchestrator.errors import DataError
from orchestrator.ledger.storage import Storage
from tests.encoders import small_encoder, speechlike
from tests.tiny_suite import make_tiny_suite


class World:
    """An encoder, two codebooks and a suite."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "suite"
        self.wavs = make_tiny_suite(self.root)
        self.suite = open_suite("swuggy", self.root)
        small_encoder("hubert base").save_pretrained(folder / "encoder")
        self.encoder = EncoderSpec(url=str(folder / "encoder"), layer=1)
        (feats_TD,) = self.encoder.load().features(speechlike(2.0))
        self.codebooks = [str(folder / f"codebook-{n}") for n in range(2)]
        for url, step in zip(self.codebooks, (9, 4), strict=True):
            centroids_KD = feats_TD[::step].contiguous()
            fit = Fit(centroids=centroids_KD, inertia=0.0, iterations=0, num_frames=99)
            write_codebook(Storage(url), fit)
        self.outs = [Storage(str(folder / f"units-{n}")) for n in range(2)]

    def worker(self) -> SuiteWorker:
        urls = [out.url for out in self.outs]
        return SuiteWorker(self.encoder, self.root, self.codebooks, urls, True)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_each_codebook_gets_its_units_of_every_file(world: World) -> None:
    (files,) = shards_of(world.suite)
    assert [name for name, _ in files] == list(world.suite.files)
    world.worker()(FileTask(0, files, (0, 1)))
    for out, url in zip(world.outs, world.codebooks, strict=True):
        assert missing_shards([0], [out]) == {}
        spoken = utterances_of(out)
        assert [s.id for s in spoken] == list(world.suite.files)
        num_units = len(load_file(Path(url, "codebook.safetensors"))["centroids"])
        assert all(len(s.units_L) and max(s.units_L) < num_units for s in spoken)
    few, many = (sum(len(s.units_L) for s in utterances_of(out)) for out in world.outs)
    assert few < many


def test_only_what_is_missing_is_made(world: World) -> None:
    (files,) = shards_of(world.suite)
    world.worker()(FileTask(0, files, (1,)))
    assert missing_shards([0], world.outs) == {0: (0,)}
    assert not world.outs[0].list()


def test_a_recording_that_cannot_be_read_is_named(world: World) -> None:
    world.wavs[3].write_bytes(b"RIFF, but not a recording")
    (files,) = shards_of(world.suite)
    with pytest.raises(DataError, match=r"lexical/dev/03\.wav: "):
        world.worker()(FileTask(0, files, (0,)))
    assert not world.outs[0].list()


def test_shards_are_a_pure_function_of_the_suite(tmp_path: Path) -> None:
    for number in range(2):
        make_tiny_suite(tmp_path / str(number), num_pairs=80)
    one, other = (shards_of(open_suite("swuggy", tmp_path / str(n))) for n in range(2))
    assert one == other
    assert [len(shard) for shard in one] == [FILES_PER_SHARD, 320 - FILES_PER_SHARD]
