"""The text models of a run, looked at before its audio."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import (
    AutoModelForCausalLM,
    CTRLConfig,
    GPTNeoXJapaneseConfig,
    OpenAIGPTConfig,
    PreTrainedConfig,
)

from jobs import corpus, text_model, tokenize
from orchestrator.errors import RequestError, SpecErrors
from orchestrator.ledger.storage import sha256_of
from orchestrator.plan.graph import Scope
from tests.unit.jobs.lm.test_twist import CONFIGS
from tests.unit.jobs.test_attempt import attempt_in
from tests.unit.jobs.test_weights import UP, change, rename
from tests.unit.orchestrator.recipes import recipe


@pytest.fixture
def lm(tmp_path: Path) -> Path:
    AutoModelForCausalLM.from_config(CONFIGS["llama"]).save_pretrained(tmp_path / "lm")
    return tmp_path / "lm"


def attempt_with(lm: Path, **fields: object) -> text_model.Attempt:
    pinned = {"model.text_model": "lm", "model.sha256": sha256_of(lm / "model.safetensors")}
    attempt = attempt_in(lm.parent, models={"lm": str(lm)})
    return replace(attempt, recipe=recipe(**{**pinned, "train.context_length": 16, **fields}))


@pytest.mark.parametrize("stage", [corpus, tokenize])
def test_a_renamed_weight_is_refused_before_any_audio(lm: Path, stage: object) -> None:
    attempt = attempt_with(change(lm, rename(UP, "model.layers.0.mlp.up.weight")))
    with pytest.raises(RequestError, match=f"{UP} is missing"):
        stage.work(attempt)  # type: ignore[attr-defined]


def test_each_variant_has_its_say(lm: Path) -> None:
    """Of a cold arm's text model only the config is used."""
    change(lm, rename(UP, "model.layers.0.mlp.up.weight"))
    cold = attempt_with(lm, **{"model.init": "cold"})
    text_model.require_all(cold)
    warm = attempt_with(lm).recipe
    with pytest.raises(RequestError, match="is missing"):
        text_model.require_all(replace(cold, recipes=(cold.recipe, warm)))
    size = {"train.context_length": 1 << 20, "train.global_batch_tokens": 1 << 20}
    long = attempt_with(lm, **size)
    with pytest.raises(SpecErrors, match=r"train\.context_length"):
        text_model.require_all(replace(cold, recipes=(cold.recipe, long.recipe)))


def test_a_run_that_trains_nothing_asks_for_none(lm: Path) -> None:
    attempt = attempt_with(change(lm, rename(UP, "model.layers.0.mlp.up.weight")))
    text_model.require_all(replace(attempt, scope=Scope(frozenset({"corpus"}))))


@pytest.mark.parametrize("init", ["twist", "cold"])
@pytest.mark.parametrize(
    ("config", "name"),
    [
        (OpenAIGPTConfig(vocab_size=9, n_embd=16, n_layer=1, n_head=2), "OpenAIGPTLMHeadModel"),
        (CTRLConfig(vocab_size=9, n_embd=16, dff=16, n_layer=1, n_head=2), "CTRLLMHeadModel"),
        (
            GPTNeoXJapaneseConfig(
                vocab_size=9, hidden_size=16, num_hidden_layers=1, num_attention_heads=2
            ),
            "GPTNeoXJapaneseForCausalLM",
        ),
    ],
    ids=["gpt", "ctrl", "neox"],
)
def test_a_family_without_activation_checkpointing(
    tmp_path: Path, config: PreTrainedConfig, name: str, init: str
) -> None:
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "lm")
    execution = {"micro_batch": 1, "activation_checkpointing": True}
    asked = {"train.execution": execution, "model.init": init, "model.init_std": 0.02}
    attempt = attempt_with(tmp_path / "lm", **asked)
    with pytest.raises(RequestError, match=f"activation_checkpointing: {name} has none; leave"):
        text_model.require_all(attempt)


def test_its_place_is_where_the_cluster_says(lm: Path) -> None:
    attempt = attempt_with(lm)
    assert text_model.place(attempt, attempt.recipe) == str(lm)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (None, "has no config.json"),
        ("{", "Expecting property name"),
        ("\xff", "decode"),
        ("[1]", "is no JSON object"),
        ("null", "is no JSON object"),
        ('"opt"', "is no JSON object"),
    ],
)
def test_a_config_that_cannot_be_read_is_a_wrong_request(
    lm: Path, config: str | None, problem: str
) -> None:
    attempt = attempt_with(lm)
    (lm / "config.json").unlink()
    if config:
        (lm / "config.json").write_bytes(config.encode("latin-1"))
    with pytest.raises(RequestError, match=rf"model\.text_model: .*{problem}"):
        text_model.place(attempt, attempt.recipe)


def test_a_training_leaves_the_names_of_weights_to_the_ranks_that_load_them(lm: Path) -> None:
    attempt = attempt_with(change(lm, rename(UP, "model.layers.0.mlp.up.weight")))
    assert text_model.place(attempt, attempt.recipe) == str(lm)
