"""Models over units from folders: where units are in the vocabulary, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from jobs.scoring.unit_model import Vocabulary, load_model, vocabulary_of
from orchestrator.errors import RequestError

UNITS = np.array([3, 0, 4], np.uint16)


def folder_with(to: Path, config: dict[str, Any], units: dict[str, Any] | None = None) -> Path:
    (to / "config.json").write_text(json.dumps(config))
    if units is not None:
        (to / "units.json").write_text(json.dumps(units))
    return to


def test_an_export_says_how_it_takes_units(tmp_path: Path) -> None:
    config = {"model_type": "llama", "max_position_embeddings": 2048, "offset": 0}
    about = {"offset": 2, "bos": 1, "eos": None, "context_length": 512}
    vocabulary = vocabulary_of(folder_with(tmp_path, config, about))
    assert vocabulary == Vocabulary(offset=2, bos=1, context_length=512)
    assert vocabulary.tokens(UNITS).tolist() == [1, 5, 2, 6]


def test_a_release_of_twist_says_where_units_begin(tmp_path: Path) -> None:
    config = {"model_type": "opt", "max_position_embeddings": 2048, "offset": 20}
    config |= {"bos_token_id": 2, "eos_token_id": 2}
    vocabulary = vocabulary_of(folder_with(tmp_path, config))
    assert vocabulary == Vocabulary(offset=20, context_length=2048)
    assert vocabulary.tokens(UNITS).tolist() == [23, 20, 24]


def test_any_other_model_has_a_token_for_each_unit(tmp_path: Path) -> None:
    assert vocabulary_of(folder_with(tmp_path, {"model_type": "bloom"})) == Vocabulary()


def test_the_rule_says_what_is_scored() -> None:
    plain = Vocabulary(context_length=128).rule
    assert "no BOS, so that its first unit is context" in plain
    assert "no EOS" in plain
    assert "windows of 128 tokens" in plain
    framed = Vocabulary(bos=1, eos=2).rule
    assert "BOS (token 1) first, all units scored" in framed
    assert "EOS (token 2) scored" in framed
    assert "no limit of length" in framed


def test_units_without_a_token_are_refused() -> None:
    Vocabulary(offset=1).require_room(499, 500, where="model")
    with pytest.raises(RequestError, match="500 tokens, but 500 units from token 1 on need 501"):
        Vocabulary(offset=1).require_room(500, 500, where="model")
    with pytest.raises(RequestError, match="need 601"):
        Vocabulary(eos=600).require_room(500, 500, where="model")


@pytest.mark.parametrize(
    ("config", "units", "words"),
    [
        ("{", None, "config.json: is no JSON"),
        ("[]", None, "config.json: is no mapping"),
        ('{"offset": -1}', None, "config.json: offset: -1 is no token"),
        ("{}", '{"bos": "<s>"}', "units.json: bos: '<s>' is no token"),
    ],
)
def test_what_is_no_model_is_refused(
    tmp_path: Path, config: str, units: str | None, words: str
) -> None:
    (tmp_path / "config.json").write_text(config)
    if units:
        (tmp_path / "units.json").write_text(units)
    with pytest.raises(RequestError, match=words):
        vocabulary_of(tmp_path)


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"config\.json: not there; give a model's folder"):
        vocabulary_of(tmp_path)


def test_a_model_is_loaded_whole_or_not_at_all(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    model = load_model(tmp_path, where="MODEL", device=torch.device("cpu"))
    assert model.dtype == torch.float32
    assert not model.training
    (tmp_path / "model.safetensors").write_bytes(b"torn")
    with pytest.raises(RequestError, match=r"MODEL: .*model\.safetensors: cannot be loaded"):
        load_model(tmp_path, where="MODEL", device=torch.device("cpu"))
