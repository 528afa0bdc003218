"""Codebook and tokenize on real actors: the same bytes, whoever computes, dies or resumes."""

from __future__ import annotations

import hashlib
import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from transformers import HubertConfig, HubertModel

from jobs import codebook, tokenize
from jobs.attempt import Attempt
from jobs.ray_session import session
from jobs.speech.units import read_codebook
from jobs.speech.utterances import source_roots
from jobs.unit_shards import shard_paths
from orchestrator.errors import CorruptError, RequestError
from orchestrator.ledger.artifact import Artifact
from orchestrator.ledger.attempt import AttemptFolder
from orchestrator.ledger.storage import Storage
from orchestrator.spec.cluster import Cluster, Resources
from orchestrator.spec.loader import load_recipe, variant_recipe
from orchestrator.spec.recipe import Codebook
from recipes.smoke_material import babble, make_text_lm
from tests.corpora import make_corpus

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent.parent
NUM_RECORDINGS, NUM_SHARDS = 24, 6
SHARD_HOURS, NUM_LAYERS = 0.026, 3


@dataclass
class Observed(Attempt):
    """An attempt whose progress someone acts on."""

    on_progress: Callable[[float], None] = lambda _done: None

    def progress(self, done: float, total: float, unit: str, **rates: float) -> None:
        """Tell the observer too."""
        super().progress(done, total, unit, **rates)
        self.on_progress(done)


@dataclass(frozen=True)
class World:
    """A corpus and an encoder that are done, and stages to run on them."""

    folder: Path

    def artifact(self, stage: str, name: str = "upstream") -> Artifact:
        key = hashlib.sha256(f"{stage} {name}".encode()).hexdigest()
        return Artifact(stage, key, Storage(str(self.folder / stage / name)))

    def attempt(
        self,
        stage: str,
        *names: str,
        workers: int,
        codebooks: tuple[str, ...] = (),
        settings: Sequence[tuple[int, int]] = (),
    ) -> Observed:
        """``settings``: layer and number of clusters of each name; by default the recipe's."""
        upstream = {"corpus": self.artifact("corpus"), "encoder": self.artifact("encoder")}
        folder = self.folder / "attempts" / stage / "-".join(names)
        folder.mkdir(parents=True, exist_ok=True)
        given = ["tokenizer.fit_hours=1", f"encoder.pretrain.num_layers={NUM_LAYERS}"]
        recipe = load_recipe(ROOT / "recipes" / "smoke.yaml", given)
        own = [
            variant_recipe(recipe, {"encoder.layer": layer, "tokenizer.num_clusters": k})
            for layer, k in settings
        ]
        return Observed(
            recipe=own[0] if own else recipe,
            own_recipes=tuple(own),
            cluster=Cluster(
                backend="local",
                store="unused",
                data={"smoke": str(self.folder / "speech")},
                models={"smoke-lm": str(self.folder / "lm")},
            ),
            resources=Resources(min_workers=workers, max_workers=workers),
            artifacts=tuple(self.artifact(stage, name) for name in names),
            upstreams=tuple(
                {**upstream, "codebook": self.artifact("codebook", c)} for c in codebooks
            )
            or (upstream,),
            lease_n=1,
            folder=folder,
            record=AttemptFolder(1, Storage(str(folder))),
        )

    def fit(self, attempt: Attempt) -> None:
        """Make codebooks, and publish them."""
        facts = codebook.work(attempt)
        per_key = facts.pop("per_key", {})
        for artifact in attempt.artifacts:
            own = {**facts, **per_key.get(artifact.key, {})}
            artifact.publish(inputs={}, facts=own, producer={})

    def bytes_of(self, stage: str, name: str) -> dict[str, bytes]:
        storage = self.artifact(stage, name).storage
        return {p: storage.read_bytes(p) for p in storage.list() if p != "MANIFEST.json"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    torch.set_num_threads(1)
    world = World(tmp_path_factory.mktemp("world"))
    _make_corpus(world)
    _make_encoder(world)
    make_text_lm(world.folder / "lm")
    with session("", num_cpus=2):
        world.fit(world.attempt("codebook", "one", workers=1))
        yield world


@pytest.fixture(scope="module")
def fitted(world: World) -> dict[str, bytes]:
    """Shards of units of the codebook ``one``."""
    tokenize.work(world.attempt("tokenize", "alone", workers=1, codebooks=("one",)))
    return world.bytes_of("tokenize", "alone")


def _make_corpus(world: World) -> None:
    for number in range(NUM_RECORDINGS):
        wave = babble(np.random.default_rng(number), syllables=90 + number % 7)
        path = world.folder / "speech" / "en" / f"{number}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, wave, 16_000, subtype="PCM_16")
    artifact, attempt = world.artifact("corpus"), world.attempt("corpus", "upstream", workers=1)
    corpus = attempt.recipe.corpus.model_copy(update={"shard_hours": SHARD_HOURS})
    make_corpus(artifact.storage, corpus, source_roots(attempt))
    facts = {"num_shards": NUM_SHARDS, "num_left_out": 0, "num_quarantined": 0}
    artifact.publish(inputs={}, facts=facts, producer={})


def _make_encoder(world: World) -> None:
    torch.manual_seed(0)
    config = HubertConfig(
        hidden_size=32,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=2,
        intermediate_size=48,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
        conv_dim=(16,) * 7,
        initializer_range=0.3,  # layers that are much alike could not be told apart
    )
    HubertModel(config).save_pretrained(world.artifact("encoder").storage.url)


def _actors() -> list[psutil.Process]:
    """The worker processes of this process's Ray session, oldest first."""
    actors = [p for p in psutil.process_iter() if _is_our_actor(p)]
    return sorted(actors, key=lambda p: p.create_time())


def _kill_all_actors() -> None:
    """SIGKILL every worker: one alone may hold no block, and then nobody misses it."""
    for actor in _actors():
        actor.kill()


def _is_our_actor(process: psutil.Process) -> bool:
    try:
        return "ray::_Host" in " ".join(process.cmdline()) and any(
            parent.ppid() == psutil.Process().pid for parent in process.parents()
        )
    except psutil.Error:
        return False


def test_a_codebook_is_the_same_with_two_workers_that_die(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    attempt = world.attempt("codebook", "two", workers=2)
    attempt.on_progress = lambda done: _kill_all_actors() if done == 2 else None
    with caplog.at_level(logging.WARNING):
        world.fit(attempt)
    assert "a worker died" in caplog.text
    assert world.bytes_of("codebook", "two") == world.bytes_of("codebook", "one")
    facts = world.artifact("codebook", "two").facts
    assert facts == world.artifact("codebook", "one").facts
    assert facts["iterations"] > 2


def test_codebooks_and_units_of_one_pass_are_those_of_a_pass_for_each(
    world: World, fitted: dict[str, bytes]
) -> None:
    """Of two layers and two sizes; ``one`` was fitted, and its units were made, by itself."""
    settings = {"deep": (3, 20), "same": (2, 20), "more": (2, 30)}
    own = {"workers": 2, "settings": list(settings.values())}
    world.fit(world.attempt("codebook", *settings, **own))
    tokenize.work(world.attempt("tokenize", *settings, codebooks=tuple(settings), **own))
    assert world.bytes_of("codebook", "same") == world.bytes_of("codebook", "one")
    assert world.artifact("codebook", "same").facts == world.artifact("codebook", "one").facts
    assert world.bytes_of("tokenize", "same") == fitted
    for stage in ("codebook", "tokenize"):
        made = [world.bytes_of(stage, name) for name in settings]
        assert len({tuple(files) for files in made}) == 1
        assert len({tuple(files.values()) for files in made}) == 3
    assert world.artifact("codebook", "more").facts["num_clusters"] == 30


def test_shards_are_the_same_with_two_workers_of_which_one_dies(
    world: World, fitted: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    attempt = world.attempt("tokenize", "a", "b", workers=2, codebooks=("one", "one"))
    attempt.on_progress = lambda done: _actors()[-1].kill() if done == 1 else None
    with caplog.at_level(logging.WARNING):
        both = tokenize.work(attempt)
    assert "a worker died" in caplog.text
    assert len(shard_paths(fitted)) == NUM_SHARDS
    assert world.bytes_of("tokenize", "a") == world.bytes_of("tokenize", "b") == fitted
    one, other = both["per_key"].values()
    assert one == other
    assert one["num_recordings"] == NUM_RECORDINGS
    assert one["num_utterances"] > 2 * NUM_RECORDINGS


def test_a_later_attempt_makes_what_is_missing_and_nothing_else(world: World) -> None:
    first = tokenize.work(world.attempt("tokenize", "again", workers=1, codebooks=("one",)))
    expected = world.bytes_of("tokenize", "again")
    storage = world.artifact("tokenize", "again").storage
    paths = shard_paths(expected)
    written = {p: (Path(storage.url) / p).stat().st_ctime_ns for p in paths}
    storage.delete(paths[2])
    second = tokenize.work(world.attempt("tokenize", "again", workers=1, codebooks=("one",)))
    assert second == first
    assert world.bytes_of("tokenize", "again") == expected
    changed = {p for p in paths if (Path(storage.url) / p).stat().st_ctime_ns != written[p]}
    assert changed == {paths[2]}


def test_units_are_those_of_each_utterance_alone(world: World, fitted: dict[str, bytes]) -> None:
    """Shards against stock inference at batch size 1, deduplicated by hand."""
    model = HubertModel.from_pretrained(world.artifact("encoder").storage.url).eval()
    centroids_KD = read_codebook(world.artifact("codebook", "one").storage)["centroids"]
    for data in (fitted[path] for path in shard_paths(fitted)):
        for row in pq.read_table(pa.BufferReader(data)).to_pylist():
            path = world.folder / "speech" / row["recording"].removeprefix("smoke/")
            wave, _ = soundfile.read(f"{path}.wav", dtype="float32")
            start = row["start_sample"]
            wav_BS = torch.from_numpy(wave[start : start + row["num_samples"]])[None]
            with torch.inference_mode():
                feats_TD = model(wav_BS, output_hidden_states=True).hidden_states[2][0]
            units_T = torch.cdist(feats_TD, centroids_KD).argmin(1).numpy()
            assert np.repeat(row["units"], row["durations"]).tolist() == units_T.tolist()
            assert all(a != b for a, b in zip(row["units"], row["units"][1:], strict=False))


def _published(world: World, name: str, array: np.ndarray, **over: Any) -> Observed:
    """An attempt that imports centroids from ``km/<name>``, an array or a pickled estimator."""
    (folder := world.folder / "km").mkdir(exist_ok=True)
    if name.endswith(".npy"):
        np.save(folder / name, array)
    else:
        state = pickle.dumps({"n_clusters": len(array), "cluster_centers_": array}, 2)
        estimator = b"\x80\x02csklearn.cluster._kmeans\nKMeans\n)\x81"
        (folder / name).write_bytes(estimator + state[2:-1] + b"b.")
    attempt = world.attempt("codebook", name, workers=1)
    digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    given = Codebook(model="km", file=name, sha256=over.pop("sha256", digest))
    attempt.cluster.models["km"] = str(folder)
    recipe = attempt.recipe
    tokenizer = recipe.tokenizer.model_copy(update={"codebook": given})
    encoder = recipe.encoder.model_copy(update=over)
    attempt.recipe = recipe.model_copy(update={"tokenizer": tokenizer, "encoder": encoder})
    return attempt


def _centroids(world: World) -> np.ndarray:
    return read_codebook(world.artifact("codebook", "one").storage)["centroids"].numpy()


def test_a_published_codebook_gives_the_units_of_the_fit_that_it_is(
    world: World, fitted: dict[str, bytes]
) -> None:
    world.fit(_published(world, "km.npy", _centroids(world)))
    facts = world.artifact("codebook", "km.npy").facts
    assert facts["sha256"] == world.artifact("codebook", "one").facts["sha256"]
    about = world.artifact("codebook", "km.npy").storage.read_json("published.json")
    assert about == facts["published"]
    assert (about["format"], about["dtype"], len(about["views"])) == ("npy", "float32", 6)
    tokenize.work(world.attempt("tokenize", "km.npy", workers=1, codebooks=("km.npy",)))
    assert world.bytes_of("tokenize", "km.npy") == fitted


def test_a_codebook_of_another_layer_is_refused_with_its_inertia(world: World) -> None:
    with pytest.raises(RequestError, match="the stated layer 1 after_residual") as error:
        codebook.work(_published(world, "km.joblib", _centroids(world), layer=1))
    assert "set encoder.layer: 2 and encoder.output: after_residual" in str(error.value)


def test_a_codebook_of_other_sizes_or_digest_is_refused(world: World) -> None:
    centroids_KD = _centroids(world)
    for array, says in (
        (centroids_KD[:, :30], "centroids of 30 numbers, but the encoder's features have 32"),
        (centroids_KD[:7], "num_clusters: is 20, but .* has 7 centroids; give 7"),
    ):
        with pytest.raises(RequestError, match=says):
            codebook.work(_published(world, "sizes.npy", array))
    with pytest.raises(
        CorruptError, match=r"tokenizer\.codebook\.sha256: .* has [0-9a-f]{64}, not"
    ):
        codebook.work(_published(world, "digest.npy", centroids_KD, sha256="0" * 64))
