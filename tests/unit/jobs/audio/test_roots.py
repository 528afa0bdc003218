"""A root that is no longer what it was."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jobs.audio.decoders import Decoders
from jobs.audio.roots import Root, RootWatch
from jobs.audio.trees import Leaf
from orchestrator.errors import BackendError, Cause
from orchestrator.ledger.bucket_path import BucketPath
from orchestrator.ledger.object_store import ObjectStore


@pytest.fixture
def watch(tmp_path: Path) -> RootWatch:
    (tmp_path / "root").mkdir()
    (tmp_path / "root/a.wav").touch()
    return RootWatch("mine", tmp_path / "root")


def test_a_root_that_stays_is_fine(watch: RootWatch, tmp_path: Path) -> None:
    watch.require()
    watch.has_read(tmp_path / "root/a.wav")
    watch.require()


def test_another_file_system_in_its_place_is_none(watch: RootWatch, tmp_path: Path) -> None:
    (tmp_path / "root").rename(tmp_path / "before")
    (tmp_path / "root").symlink_to("/proc")
    with pytest.raises(BackendError, match=r"data\.mine: .*another file system") as error:
        watch.require()
    assert error.value.cause == Cause.STORAGE


def test_a_root_without_what_was_read_there_is_none(watch: RootWatch, tmp_path: Path) -> None:
    watch.has_read(tmp_path / "root/a.wav")
    (tmp_path / "root/a.wav").unlink()
    with pytest.raises(BackendError, match=r"data\.mine: .*a\.wav: No such file"):
        watch.require()


def test_a_root_that_is_gone_is_named(watch: RootWatch, tmp_path: Path) -> None:
    (tmp_path / "root").rename(tmp_path / "before")
    with pytest.raises(
        BackendError, match=r"data\.mine: .*root: No such file.*see whether it is there"
    ):
        watch.require()
    with pytest.raises(BackendError, match=r"data\.mine: .*root: No such file"):
        RootWatch("mine", tmp_path / "root")


def test_recordings_are_decoded_as_the_source_asks_and_cancelling_channels_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    left = np.random.default_rng(0).uniform(-0.5, 0.5, 70 * 8_000)
    soundfile.write(tmp_path / "a.wav", np.stack([left, -0.9 * left], axis=1), 8_000)
    leaf = Leaf("a.wav", 1)
    with closing(Decoders(1)) as decoders:
        whole = list(Root(tmp_path).blocks(decoders, leaf))
        assert len(whole) == 3
        assert len(caplog.records) == 1
        message = caplog.records[0].getMessage()
        assert message.endswith(
            "a.wav: the mean of its channels cancels itself; the loudest is taken "
            "in its place (from 0 s on)"
        )
        first = list(Root(tmp_path, channels="first").blocks(decoders, leaf, first=1))
        assert [b.tobytes() for b in first] == [b.tobytes() for b in whole[1:]]
        assert len(caplog.records) == 1


def test_a_bucket_is_there_as_long_as_it_holds_something() -> None:
    store = ObjectStore("memory://test-roots/corpus")
    root = BucketPath("memory://test-roots/corpus")
    with pytest.raises(BackendError, match=r"data\.mine: .*corpus: holds nothing"):
        RootWatch("mine", root)
    store.create("a.wav", b"x")
    watch = RootWatch("mine", root)
    watch.has_read(root / "a.wav")
    watch.require()
    store.create("b.wav", b"x")
    store.delete("a.wav")
    with pytest.raises(BackendError, match=r"data\.mine: .*a\.wav: is not in its bucket"):
        watch.require()
