"""Recordings in a bucket: the same blocks as from a folder, in every container."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

import boto3
import numpy as np
import pytest
import soundfile

from jobs.audio.corpora import adapter
from jobs.audio.corpora.recording import stem
from jobs.audio.decode import Wave, blocks
from jobs.audio.decoders import Decoders
from jobs.audio.listing import list_corpus
from jobs.audio.place import Place
from jobs.audio.roots import Root
from jobs.audio.trees import TREES
from orchestrator.control.fingerprint import fingerprint
from orchestrator.errors import BackendError
from orchestrator.ledger.bucket_path import WHOLE_BYTES, BucketPath
from orchestrator.spec.cluster import Container
from orchestrator.spec.recipe import Corpus, Source
from tests.faulty_store import FaultyStore
from tests.integration.conftest import BUCKET
from tests.unit.jobs.audio.corpora.layouts import as_tars
from tests.unit.jobs.audio.test_place import in_parquet
from tests.unit.orchestrator import broken

LONG = "en/bob/hour long.flac"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of one's own; one recording is too long to be read whole."""
    root, rng = tmp_path_factory.mktemp("corpus") / "folders", np.random.default_rng(0)
    sizes = {LONG: (100, 48_000), "en/bob/short é.wav": (2, 44_100), "es/ana/two.mp3": (35, 22_050)}
    for name, (seconds, rate_hz) in sizes.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / name, rng.uniform(-0.5, 0.5, seconds * rate_hz), rate_hz)
    assert (root / LONG).stat().st_size > WHOLE_BYTES
    return root


def upload(folder: Path, prefix: str) -> BucketPath:
    client = boto3.client("s3")
    for path in (p for p in folder.rglob("*") if p.is_file()):
        key = f"{prefix}/{path.relative_to(folder).as_posix()}"
        client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())
    return BucketPath(f"s3://{BUCKET}/{prefix}")


def blocks_with(environment: dict[str, str], where: Path | Place, **how: Any) -> Iterator[Wave]:
    """What `blocks` gives in a process that was started before the variables were set."""
    os.environ.update(environment)
    return blocks(where, **how)


def in_container(container: Container, folders: Path, to: Path) -> Path:
    """The corpus in a container, below a folder."""
    if container == "folder":
        return folders
    if container == "tar":
        return as_tars(folders, to, lambda _: True)
    in_parquet(folders, to, names_of(folders))
    return to


def names_of(folders: Path) -> list[str]:
    return sorted(path.relative_to(folders).as_posix() for path in folders.rglob("*.*"))


@pytest.fixture(scope="module")
def expected(folders: Path) -> dict[str, list[bytes]]:
    """Blocks of each recording by its id."""
    names = names_of(folders)
    return {stem(name): [b.tobytes() for b in blocks(folders / name)] for name in names}


@pytest.mark.parametrize("container", get_args(Container))
def test_the_same_in_every_container(
    container: Container,
    folders: Path,
    expected: dict[str, list[bytes]],
    s3: dict[str, str],
    tmp_path: Path,
) -> None:
    root = in_container(container, folders, tmp_path)
    bucket = upload(root, container)
    source = Source(name="s", adapter="hf_parquet" if container == "parquet" else "folder")
    assert fingerprint(source, bucket, container) == fingerprint(source, root, container)
    corpus = Corpus(sources=(source,))
    listings = [list_corpus(corpus, {"s": Root(where, container)}) for where in (root, bucket)]
    assert listings[0] == listings[1]
    tree = TREES[container](bucket)
    found = {r.id: tree.place(r.leaf) for r in adapter(source.adapter)(tree)}
    assert found.keys() == expected.keys()
    with closing(Decoders(1, decode=partial(blocks_with, s3))) as decoders:
        for recording, place in found.items():
            for first in {0, len(expected[recording]) - 1}:
                read = [block.tobytes() for block in decoders.blocks(place, first=first)]
                assert read == expected[recording][first:], (recording, first)


def test_faults_on_the_way_change_nothing(
    folders: Path, expected: dict[str, list[bytes]], s3: dict[str, str]
) -> None:
    bucket, url = upload(folders, "faults"), urlsplit(s3["AWS_ENDPOINT_URL"])
    faulty = FaultyStore((url.hostname or "", url.port or 0), share=0.3)
    with faulty.serving() as endpoint:
        environment = {**s3, "AWS_ENDPOINT_URL": endpoint}
        with closing(Decoders(1, decode=partial(blocks_with, environment))) as decoders:
            read = [block.tobytes() for block in decoders.blocks(Place.of(bucket / LONG))]
    assert read == expected[stem(LONG)]
    assert faulty.met


def test_what_is_gone_is_no_verdict_and_told_from_a_bucket_that_is(
    folders: Path, s3: dict[str, str]
) -> None:
    bucket = upload(folders, "some")
    gone = bucket / "gone.wav"
    with pytest.raises(BackendError, match=r"some/gone\.wav: is not in its bucket \(any more\)"):
        list(blocks(Place.of(gone)))
    for url in (f"s3://{BUCKET}/none", "s3://no-such-bucket/x"):
        with pytest.raises(BackendError, match=rf"{url}.*(holds nothing|not there, or its bucket)"):
            list(blocks(Place.of(BucketPath(url) / "gone.wav")))


def test_a_plan_waits_for_a_bucket_no_longer_than_for_a_store(
    s3: dict[str, str], tmp_path: Path
) -> None:
    """3: it does not answer; 2: it does, and nothing is there."""
    words = ["plan", *broken.SOUND.write(tmp_path)]
    cluster, away = (tmp_path / "c.yaml").read_text(), {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
    for folder, environment, code, said in (
        ("planned", away, 3, "the store did not do as asked"),
        ("nothing", {}, 2, "nothing: holds nothing"),
    ):
        root = f"speech: s3://{BUCKET}/{folder}"
        (tmp_path / "c.yaml").write_text(cluster.replace("speech: speech", root))
        env = {**os.environ, **environment, "ORCHESTRATOR_ANSWER_WITHIN_S": "3"}
        program = [sys.executable, "-m", "orchestrator.cli.main", *words]
        done = subprocess.run(program, capture_output=True, text=True, env=env, timeout=20)
        assert (done.returncode, said in done.stderr) == (code, True), done.stderr
        assert f"c.yaml: data.speech: s3://{BUCKET}/{folder}" in done.stderr
