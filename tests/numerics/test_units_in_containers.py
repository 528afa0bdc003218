"""One corpus in five containers, on a path and in a bucket: the same shards of units, in bytes."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import boto3
import pytest
import soundfile
import torch
from transformers import HubertConfig, HubertModel

from jobs.audio.roots import Root
from jobs.speech.lloyd import Fit
from jobs.speech.transformer import View
from jobs.speech.units import EncoderSpec, ShardTask, Tokenizer, WantedUnits, write_codebook
from jobs.unit_shards import read_shard, shard_path
from orchestrator.ledger.bucket_path import BucketPath
from orchestrator.ledger.storage import Storage
from orchestrator.spec.recipe import Corpus, Source, Windows
from tests.corpora import make_corpus
from tests.integration.conftest import BUCKET, serving
from tests.unit.jobs.audio.test_place import (
    NAMES,
    in_a_manifest,
    in_folders,
    in_parquet,
    in_shar,
    in_tars,
)

WINDOWS = Windows(max_s=4.0)
WAYS = {
    "folder": in_folders,
    "tar": in_tars,
    "parquet": in_parquet,
    "manifest": in_a_manifest,
    "shar": in_shar,
}
CONTAINERS = {"tar": "tar", "parquet": "parquet", "shar": "tar"}
"""Of those that are not folders."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lossless audio at several rates, one of it in several windows; names of test_place."""
    root = tmp_path_factory.mktemp("corpus") / "folders"
    for number, name in enumerate(NAMES):
        generator = torch.Generator().manual_seed(number)
        rate_hz, seconds = (8_000, 44_100, 16_000, 22_050)[number], (11, 2, 3, 5)[number]
        wave = 0.1 * torch.randn(seconds * rate_hz, generator=generator)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(root / name, wave.numpy(), rate_hz, format="FLAC")
    return root


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder and a codebook."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    config = HubertConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        conv_dim=(16,) * 7,
    )
    HubertModel(config).save_pretrained(folder / "encoder")
    centroids = torch.randn(20, 32)
    fit = Fit(centroids=centroids, inertia=1.0, iterations=1, num_frames=100)
    write_codebook(Storage(str(folder / "codebook")), fit)
    return folder


def contained(way: str, folders: Path, folder: Path) -> tuple[str, Path]:
    """The adapter that finds the corpus in one container, and the root of that."""
    folder.mkdir(parents=True)
    adapter, _ = WAYS[way](folders, folder)
    return adapter, {"folder": folders, "tar": folder / "tars"}.get(way, folder)


def shards_of(
    way: str, adapter: str, where: Path | BucketPath, models: Path, folder: Path
) -> list[bytes]:
    """The unit shards of the corpus in one container; ``folder``: where artifacts may go."""
    torch.set_num_threads(1)
    roots = {"s": Root(where, CONTAINERS.get(way, "folder"))}
    source = Source.model_validate({"name": "s", "adapter": adapter, "language": "en"})
    corpus = Corpus(sources=(source,), windows=WINDOWS, shard_hours=8 / 3600)
    tables = make_corpus(Storage(str(folder / "corpus")), corpus, roots)
    out, spec = Storage(str(folder / "units")), EncoderSpec(url=str(models / "encoder"), layer=2)
    units = WantedUnits(view=View(2), codebook_url=str(models / "codebook"), out_url=out.url)
    tokenizer = Tokenizer(spec, roots, WINDOWS, [units], True)
    for shard in range(tables.num_shards):
        tokenizer(ShardTask(shard=shard, rows=tables.shard(shard), missing=[0]))
    return [out.read_bytes(shard_path(shard)) for shard in range(tables.num_shards)]


def shards_in_a_bucket(
    variables: Mapping[str, str], folders: Path, models: Path, folder: Path
) -> dict[str, list[bytes]]:
    """Of each container; in a process of its own, whose decoders get the variables."""
    os.environ.update(variables)
    client, found = boto3.client("s3"), {}
    client.create_bucket(Bucket=BUCKET)
    for way in WAYS:
        adapter, root = contained(way, folders, folder / way / "audio")
        whole = shutil.copytree(root, folder / way / "whole")  # with what links lead to
        for path in (p for p in whole.rglob("*") if p.is_file()):
            key = f"{way}/{path.relative_to(whole).as_posix()}"
            client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())
        where = BucketPath(f"s3://{BUCKET}/{way}")
        found[way] = shards_of(way, adapter, where, models, folder / way)
    return found


@pytest.fixture(scope="module")
def expected(folders: Path, models: Path, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """The shards of the folder."""
    return shards_of("folder", "folder", folders, models, tmp_path_factory.mktemp("expected"))


def test_units_do_not_depend_on_the_container(
    folders: Path, models: Path, expected: list[bytes], tmp_path: Path
) -> None:
    rows = [row for data in expected for row in read_shard(data).to_pylist()]
    assert len({row["recording"] for row in rows}) == 4
    assert len(rows) > 4, "one is in several windows"
    assert all(row["units"] and not row["unreadable"] for row in rows)
    assert len(expected) > 1
    for way in sorted(WAYS.keys() - {"folder"}):
        adapter, root = contained(way, folders, tmp_path / way / "audio")
        assert shards_of(way, adapter, root, models, tmp_path / way) == expected, way


def test_units_do_not_depend_on_the_bucket(
    folders: Path, models: Path, expected: list[bytes], tmp_path: Path
) -> None:
    fresh = multiprocessing.get_context("spawn")
    with serving(tmp_path / "server.log") as variables, ProcessPoolExecutor(1, fresh) as pool:
        given = (variables, folders, models, tmp_path)
        found = pool.submit(shards_in_a_bucket, *given).result()
    assert found == dict.fromkeys(WAYS, expected)
