"""Two published layouts, heard on Slurm and on one machine: the same rows and the same bytes.

Not collected by `make test`; run by its path: ``pytest tests/slurm/corpora_runs.py``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import HubertConfig, HubertModel

from orchestrator.ledger.storage import sha256_of
from recipes.smoke_material import babble
from tests.slurm.cluster import SlurmCluster
from tests.slurm.rig import SlurmSmoke
from tests.smoke import RECIPE, Smoke
from tests.sounds import by_sndfile
from tests.unit.jobs.audio.corpora.layouts import as_tars, gzipped, write

HOURS_OF_A_SHARD = 20 / 3600
PAUSE = np.zeros(16_000, np.float32)
RESOURCES = {
    "corpus": {"mem_gb": 1, "nodes": 2, "max_workers": 2},
    "filter": {"mem_gb": 1, "nodes": 2, "max_workers": 2},
    "encoder": {"mem_gb": 1},
    "codebook": {"mem_gb": 1, "nodes": 2, "max_workers": 2},
    "tokenize": {"mem_gb": 1, "nodes": 3, "max_workers": 3},
}
MADE = ("corpus", "filter", "codebook", "tokenize")


def talk(seed: int) -> tuple[np.ndarray, list[list[float]]]:
    """Three sentences and the pauses between them, at 16 kHz; where they are, in seconds."""
    parts, spans, at = [PAUSE], [], len(PAUSE)
    for sentence in range(3):
        said = babble(np.random.default_rng(10 * seed + sentence), syllables=9)
        spans.append([round(at / 16_000, 3), round((at + len(said)) / 16_000, 3)])
        at += len(said) + len(PAUSE)
        parts += [said, PAUSE]
    return np.concatenate(parts), spans


def libri_light() -> Iterator[tuple[str, bytes | str]]:
    """Chapters of two readers; a duplicate, one without speech, and one cut short."""
    for number in range(8):
        wav_S, spans = talk(number)
        part = "duplicate" if number == 5 else "small"
        name = f"{part}/{number % 2}/book_{number % 3}/chapter{number}_64kb"
        data = by_sndfile("flac", wav_S)
        yield f"{name}.flac", data[: len(data) // 2] if number == 6 else data
        facts = {"speaker": str(number % 2), "voice_activity": [] if number == 7 else spans}
        yield f"{name}.json", json.dumps(facts)


def voxpopuli() -> Iterator[tuple[str, bytes | str]]:
    """Raw events with their table, cut ones to be heard; one silent, one broken, one German."""
    lines = ["event_id\tsegment_no\tstart\tend"]
    for number in range(3):
        event, (wav_S, spans) = f"2009091{number}-0900-PLENARY_en", talk(20 + number)
        yield f"raw_audios/en/2009/{event}.ogg", by_sndfile("ogg", wav_S, subtype="VORBIS")
        lines += [f"{event}\t{n}\t{start}\t{end}" for n, (start, end) in enumerate(spans)]
    yield "annotations/unlabelled_v2.tsv.gz", gzipped("\n".join(lines) + "\n")
    for number in range(5):
        wav_S = np.tile(PAUSE, 5) if number == 3 else talk(30 + number)[0]
        data = by_sndfile("ogg", wav_S, subtype="VORBIS")
        name = f"unlabelled_data/en/2010/20100118-0900-PLENARY-{number}_en_0.ogg"
        yield name, b"OggS, and no more" if number == 4 else data
    german = by_sndfile("ogg", talk(40)[0], subtype="VORBIS")
    yield "unlabelled_data/de/2010/20100118-0900-PLENARY-9_de_0.ogg", german


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both corpora, an encoder, and the recipe that hears them with it."""
    folder = tmp_path_factory.mktemp("given")
    write(folder / "libri", dict(libri_light()))
    write(folder / "vox", dict(voxpopuli()))
    as_tars(folder / "vox", folder / "vox-tars", lambda name: name.endswith(".ogg"))
    torch.manual_seed(0)
    HubertModel(
        HubertConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=48,
            num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=2,
            conv_dim=(16,) * 7,
        )
    ).save_pretrained(folder / "encoder")
    recipe = yaml.safe_load(RECIPE.read_text())
    recipe["corpus"] |= {
        "sources": [
            {"name": "libri", "adapter": "libri_light"},
            {"name": "vox", "adapter": "voxpopuli"},
        ],
        "filter": {"voice_activity": {}, "duplicates": "drop"},
        "shard_hours": HOURS_OF_A_SHARD,
    }
    weights = sha256_of(folder / "encoder" / "model.safetensors")
    recipe["encoder"] = {"model": "tiny", "sha256": weights, "layer": 2, "frame_rate_hz": 50}
    recipe["sweep"] = {}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def sections(given: Path, material: Path) -> dict[str, Any]:
    """What the cluster files of both say."""
    return {
        "data": {
            "libri": str(given / "libri"),
            "vox": {"root": str(given / "vox-tars"), "container": "tar"},
        },
        "models": {"tiny": str(given / "encoder"), "smoke-lm": str(material / "lm")},
    }


def submit(smoke: Smoke, given: Path) -> str:
    done = smoke.orchestrator("submit", str(given / "recipe.yaml"), "--until", "tokenize")
    return done.stdout.strip()


def made(smoke: Smoke) -> dict[str, str]:
    """SHA-256 of each table and of the codebook."""
    artifacts = smoke.folder / "store" / "artifacts"
    return {
        path.relative_to(artifacts).as_posix(): sha256_of(path)
        for stage in MADE
        for path in (artifacts / stage).rglob("*")
        if path.suffix in (".parquet", ".safetensors")
    }


def rows(smoke: Smoke, pattern: str) -> list[dict[str, Any]]:
    """Of all tables whose path is like that."""
    paths = sorted((smoke.folder / "store" / "artifacts").glob(pattern))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def test_two_layouts_are_heard_alike(
    slurm: SlurmCluster, given: Path, material: Path, tmp_path: Path
) -> None:
    local = Smoke.create(tmp_path / "local", material, **sections(given, material))
    assert local.finish(submit(local, given)) == 0
    there = {**sections(given, material), "resources": RESOURCES}
    remote = SlurmSmoke.on(slurm, tmp_path / "slurm", material, **there)
    name = submit(remote, given)
    assert remote.await_end(name) == "succeeded", remote.jobs_output(name)
    assert made(remote) == made(local)
    assert {path.split("/")[0] for path in made(local)} == set(MADE)
    assert len(rows(local, "tokenize/*/shards/**/*.parquet")) > 20
    left_out = Counter(row["reason"] for row in rows(local, "filter/*/left_out.parquet"))
    assert left_out == {"duplicate": 1, "language": 1, "no speech": 2}
    quarantine = [row["id"] for row in rows(local, "filter/*/quarantine.parquet")]
    assert [name.split("/")[0] for name in quarantine] == ["libri", "vox"]
