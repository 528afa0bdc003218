"""What the encoder stage writes, on models made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import HubertModel

from jobs.encoder import copy_pretrained, copy_published, describe, measured
from jobs.speech import pretrain
from orchestrator.errors import CorruptError, RequestError
from orchestrator.ledger.storage import Storage, sha256_of
from orchestrator.spec.recipe import Encoder, Pretrain
from tests.encoders import small_encoder

SMALL = Pretrain.model_validate(
    {
        "conv_dim": (8, 16),
        "conv_kernel": (20, 18),
        "conv_stride": (20, 16),
        "hidden_size": 16,
        "num_layers": 2,
        "num_heads": 2,
        "intermediate_size": 32,
        "iterations": [{"steps": 1}],
    }
)


@pytest.fixture
def published(tmp_path: Path) -> tuple[Path, str]:
    folder = tmp_path / "published"
    pretrain.save(HubertModel(pretrain.hubert_config(SMALL)), folder)
    return folder, sha256_of(folder / "model.safetensors")


def encoder_of(digest: str, **over: Any) -> Encoder:
    return Encoder.model_validate({"model": "m", "sha256": digest, "layer": 2, **over})


@pytest.fixture
def into(tmp_path: Path) -> Path:
    (tmp_path / "into").mkdir()
    return tmp_path / "into"


def test_published_weights_are_copied_and_described(
    published: tuple[Path, str], into: Path
) -> None:
    folder, digest = published
    copy_published(encoder_of(digest), str(folder), into)
    assert (into / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert describe(encoder_of(digest), into) == {
        "layer": 2,
        "frame_rate_hz": 50.0,
        "hop": 320,
        "receptive_field": 360,
        "sha256": digest,
    }


def test_pretrained_weights_are_copied(published: tuple[Path, str], into: Path) -> None:
    folder, digest = published
    copy_pretrained(Storage(str(folder)), into)
    assert describe(encoder_of(digest), into)["sha256"] == digest
    assert {p.name for p in into.iterdir()} == {"config.json", "model.safetensors"}


def test_other_weights_than_the_recipe_names_are_refused(
    published: tuple[Path, str], into: Path
) -> None:
    with pytest.raises(CorruptError, match=r"encoder.sha256: .* has .*, not 0000"):
        copy_published(encoder_of("0" * 64), str(published[0]), into)


def test_a_model_that_is_nowhere_is_a_wrong_request(tmp_path: Path, into: Path) -> None:
    with pytest.raises(RequestError, match=r"cannot be loaded \(no such folder\); check the path"):
        copy_published(encoder_of("0" * 64), str(tmp_path / "nowhere"), into)


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"frame_rate_hz": 25}, "encoder.frame_rate_hz: is 25, but the model's strides give 50"),
        ({"layer": 3}, r"encoder.layer: is 3, but the model has 2 layers; give 1..2"),
    ],
)
def test_a_recipe_that_means_another_model_is_refused(
    published: tuple[Path, str], over: dict[str, Any], message: str
) -> None:
    folder, digest = published
    with pytest.raises(RequestError, match=message):
        describe(encoder_of(digest, **over), folder)


def test_a_model_of_another_family_is_refused(published: tuple[Path, str]) -> None:
    """Transformers would read its config as HuBERT's, and draw weights that it does not have."""
    folder, digest = published
    config = json.loads((folder / "config.json").read_text())
    for family in ("data2vec-audio", "wav2vec2-bert", "whisper"):
        (folder / "config.json").write_text(json.dumps({**config, "model_type": family}))
        with pytest.raises(RequestError, match=f"is of model_type '{family}', none of hubert, wav"):
            describe(encoder_of(digest), folder)


@pytest.mark.parametrize("name", ["hubert large", "wav2vec 2.0 base", "wavlm large"])
def test_the_whole_family_is_published(name: str, tmp_path: Path, into: Path) -> None:
    small_encoder(name).save_pretrained(tmp_path / "model")
    encoder = encoder_of(sha256_of(tmp_path / "model" / "model.safetensors"))
    copy_published(encoder, str(tmp_path / "model"), into)
    assert describe(encoder, into)["hop"] == 320


@pytest.mark.parametrize(("said", "found"), [(None, None), (True, True), (False, False)])
def test_normalised_waves_are_said_by_whom_the_key_knows(
    published: tuple[Path, str], into: Path, said: bool | None, found: bool | None
) -> None:
    folder, digest = published
    (folder / "preprocessor_config.json").write_text('{"do_normalize": true}')
    encoder = encoder_of(digest, normalize_waveform=said)
    if found is None:  # the digest of the weights does not pin the file
        with pytest.raises(
            RequestError, match=r"normalize_waveform: preprocessor_config\.json of m"
        ):
            copy_published(encoder, str(folder), into)
        encoder = encoder_of(digest, sha256=None, revision="0" * 40)
        found = True
    copy_published(encoder, str(folder), into)
    assert describe(encoder, into).get("normalize_waveform", False) is found


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        (
            "conv_stride",
            [5, 2, 2, 2, 2, 2, 2],
            "config.json: no encoder can be made of it .*ValueE",
        ),
        ("conv_dim", "many", "config.json: no encoder can be made of it"),
        ("hidden_act", "nonsense", "model.safetensors: cannot be loaded"),
        ("intermediate_size", 33, "model.safetensors: encoder.layers.0.feed_forward.* has shape"),
    ],
)
def test_a_config_of_no_encoder_is_a_wrong_request_that_names_the_users_file(
    published: tuple[Path, str], into: Path, field: str, value: object, says: str
) -> None:
    folder, digest = published
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, field: value}))
    with pytest.raises(RequestError, match=f"^encoder.model: {folder}/{says}"):
        copy_published(encoder_of(digest), str(folder), into)


def test_figures_count_only_for_the_weights_they_were_measured_on(
    published: tuple[Path, str], into: Path
) -> None:
    folder, digest = published
    copy_published(encoder_of(digest), str(folder), into)
    assert measured(folder, into) == {}
    for sha256, found in ((digest, True), ("0" * 64, False)):
        quality = {"sha256": sha256, "encoder_pnmi": 0.5}
        (folder / "unit_quality.json").write_text(json.dumps(quality))
        assert measured(folder, into) == ({"unit_quality": quality} if found else {})


def test_a_model_that_says_nothing_of_its_waves_is_asked_about(
    published: tuple[Path, str], into: Path
) -> None:
    """A folder or an old cache may lack the file that the commit has."""
    folder, digest = published
    pinned = {"sha256": None, "revision": "0" * 40}
    with pytest.raises(RequestError, match=r"normalize_waveform: m has no preprocessor_config\.js"):
        copy_published(encoder_of(digest, **pinned), str(folder), into)
    copy_published(encoder_of(digest, **pinned, normalize_waveform=False), str(folder), into)
    assert "normalize_waveform" not in describe(
        encoder_of(digest, **pinned, normalize_waveform=False), into
    )
