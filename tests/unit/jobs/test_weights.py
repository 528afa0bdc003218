"""Weights that are not those of their config, for text LMs, encoders and trained models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, HubertModel

from jobs.lm.twist import build_model, require_loadable
from jobs.speech import pretrain
from jobs.speech.speech_encoder import SpeechEncoder
from jobs.weights import dtypes, load_whole
from orchestrator.errors import Cause, DataError, RequestError, cause_of
from tests.unit.jobs.lm.test_twist import CONFIGS, spec
from tests.unit.jobs.test_encoder import SMALL

State = dict[str, torch.Tensor]
Change = Callable[[State], object]

UP = "model.layers.0.mlp.up_proj.weight"
DEEPER = "model.layers.1.mlp.up_proj.weight"
KEY = "encoder.layers.0.attention.k_proj.weight"
POSITION = "encoder.pos_conv_embed.conv.parametrizations.weight.original0"


def rename(old: str, new: str) -> Change:
    return lambda state: state.__setitem__(new, state.pop(old))


def put(name: str, tensor: torch.Tensor) -> Change:
    return lambda state: state.__setitem__(name, tensor)


def change(folder: Path, how: Change) -> Path:
    state = load_file(folder / "model.safetensors")
    how(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def text_lm(tmp_path: Path) -> Path:
    AutoModelForCausalLM.from_config(CONFIGS["llama"]).save_pretrained(tmp_path / "lm")
    return tmp_path / "lm"


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    pretrain.save(HubertModel(pretrain.hubert_config(SMALL)), tmp_path / "hubert")
    return tmp_path / "hubert"


def build(folder: Path, **fields: object) -> Any:
    return build_model(spec(**fields), source=str(folder), num_units=20, seed=0)


def look(folder: Path, **fields: object) -> None:
    require_loadable(spec(**fields), str(folder))


EARLY_OR_LATE = pytest.mark.parametrize("by", [look, build])


@EARLY_OR_LATE
@pytest.mark.parametrize(
    ("how", "says"),
    [
        (rename(UP, "model.layers.0.mlp.up.weight"), f"{UP} is missing, model.layers.0.mlp.up."),
        (lambda state: state.pop("model.norm.weight"), r"model\.norm\.weight is missing; give"),
        (put(UP, torch.zeros(3, 5)), rf"{UP} has shape \[3, 5\], not \[32, 16\]"),
        (put(UP, torch.zeros(32, 16, dtype=torch.int8)), f"{UP} is of type I8, not a float"),
        (put("model.layers.0.extra", torch.zeros(1)), r"model\.layers\.0\.extra is unexpected"),
        (lambda state: [state.pop(n) for n in sorted(state)[2:8]], "is missing.* and 3 more; give"),
    ],
)
def test_a_text_lm_with_other_weights_is_refused(
    text_lm: Path, how: Change, says: str, by: Callable[[Path], object]
) -> None:
    change(text_lm, how)
    with pytest.raises(RequestError, match=says) as raised:
        by(text_lm)
    assert str(raised.value).startswith(f"model.text_model: {text_lm}/model.safetensors: ")
    assert cause_of(raised.value) is Cause.BAD_REQUEST


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_weights_that_are_no_numbers_are_refused(
    text_lm: Path, encoder: Path, value: float
) -> None:
    def spoil(name: str) -> Change:
        return lambda state: state[name].view(-1)[3:4].fill_(value)

    change(text_lm, spoil("model.embed_tokens.weight"))  # replaced by the units'
    build(text_lm)
    with pytest.raises(RequestError, match=f"model.safetensors: {UP} holds NaN or infinity; give"):
        build(change(text_lm, spoil(UP)))
    with pytest.raises(RequestError, match=f"^encoder.model: .*{KEY} holds NaN or infinity; give"):
        SpeechEncoder.load(change(encoder, spoil(KEY)), 2)


@pytest.mark.parametrize(
    "how",
    [
        rename("model.embed_tokens.weight", "lm_head.old"),
        put("lm_head.weight", torch.zeros(7, 16)),
        lambda state: state.pop("lm_head.weight"),
        put("model.layers.0.self_attn.rotary_emb.inv_freq", torch.zeros(4)),
        put("score.weight", torch.zeros(2, 16)),
    ],
)
def test_what_is_replaced_or_never_used_may_differ(text_lm: Path, how: Change) -> None:
    before = build(text_lm).state_dict()
    look(change(text_lm, how))
    after = build(text_lm).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_deeper_layers_than_are_used_may_be_broken(text_lm: Path) -> None:
    change(text_lm, put(DEEPER, torch.zeros(3)))
    for by in (look, build):
        by(text_lm, num_layers=1)
        with pytest.raises(RequestError, match=rf"{DEEPER} has shape \[3\]"):
            by(text_lm, num_layers=2)


@EARLY_OR_LATE
@pytest.mark.parametrize("name", CONFIGS)
def test_every_family_names_what_it_lacks(
    name: str, tmp_path: Path, by: Callable[[Path], object]
) -> None:
    AutoModelForCausalLM.from_config(CONFIGS[name]).save_pretrained(tmp_path)
    last = [n for n in load_file(tmp_path / "model.safetensors") if "norm" in n or ".ln_" in n][-1]
    change(tmp_path, rename(last, "renamed"))
    with pytest.raises(RequestError, match=f"{last} is missing, renamed is unexpected"):
        by(tmp_path)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (rename(KEY, "renamed"), f"{KEY} is missing, renamed is unexpected"),
        (rename(POSITION, "renamed"), f"{POSITION} is missing"),
        (put(KEY, torch.zeros(2, 2)), r"has shape \[2, 2\], not \[16, 16\]"),
        (put(KEY, torch.zeros(16, 16, dtype=torch.int32)), f"{KEY} is of type I32"),
    ],
)
def test_an_encoder_with_other_weights_is_refused(encoder: Path, how: Change, says: str) -> None:
    change(encoder, how)
    with pytest.raises(RequestError, match=says) as raised:
        SpeechEncoder.load(encoder, 1)
    assert str(raised.value).startswith(f"encoder.model: {encoder}/model.safetensors: ")


def test_an_encoder_may_have_heads_deeper_layers_older_names_and_no_mask(encoder: Path) -> None:
    def as_published(state: State) -> None:
        state.pop("masked_spec_embed")
        for name in list(state):
            old = name.replace("parametrizations.weight.original0", "weight_g")
            old = old.replace("parametrizations.weight.original1", "weight_v")
            state[f"hubert.{old}"] = state.pop(name)
        state["lm_head.weight"] = torch.zeros(3, 16)

    change(encoder, as_published)
    assert SpeechEncoder.load(encoder, 1).dim == 16


@pytest.mark.parametrize("how", [rename("lm_head.weight", "head"), rename(UP, "renamed")])
def test_a_trained_model_must_have_its_tables_too(text_lm: Path, how: Change) -> None:
    change(text_lm, how)
    with pytest.raises(DataError, match=r"^train: .*/model\.safetensors: .* is missing"):
        load_whole(AutoModelForCausalLM, text_lm, where="train", refusal=DataError)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("model.safetensors", b"nothing of the kind"),
        ("model.safetensors", b""),
        ("config.json", b"{}"),
        ("config.json", b"not json"),
    ],
)
def test_files_that_are_no_model_are_refused(text_lm: Path, name: str, data: bytes) -> None:
    (text_lm / name).write_bytes(data)
    with pytest.raises(RequestError, match=r"^x: .* cannot be loaded \(.*\); give the weights"):
        load_whole(AutoModelForCausalLM, text_lm, where="x")


def test_pickled_weights_are_judged_alike(text_lm: Path) -> None:
    state = load_file(text_lm / "model.safetensors")
    (text_lm / "model.safetensors").unlink()
    state[UP] = state[UP].to(torch.int8)
    torch.save(state, text_lm / "pytorch_model.bin")
    assert dtypes(text_lm)[UP] == "torch.int8"
    with pytest.raises(RequestError, match=r"pytorch_model\.bin: .* is of type torch\.int8"):
        build(text_lm)


def test_a_config_of_more_layers_than_the_weights_have(text_lm: Path) -> None:
    config = json.loads((text_lm / "config.json").read_text())
    (text_lm / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(RequestError, match=r"model\.layers\.2\..* is missing"):
        build(text_lm)
