"""What a published model's config says against a recipe, by the families there are."""

from __future__ import annotations

import math
from typing import Any

import pytest

from orchestrator.plan.model_config import (
    encoder_problems,
    is_rotary,
    num_positions,
    pretrain_problems,
    text_model_problems,
)
from tests.unit.orchestrator import broken
from tests.unit.orchestrator.recipes import pretrained_recipe, recipe

OPT = broken.CONFIGS["tiny-lm"]
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 8,
    "num_hidden_layers": 4,
    "max_position_embeddings": 2048,
}
LONG = {"train.context_length": 4096, "train.global_batch_tokens": 4096}


def said(config: dict[str, Any], **overrides: Any) -> list[str]:
    return list(text_model_problems(config, recipe(**overrides)))


def test_a_sound_model_has_no_problems() -> None:
    assert said({**OPT}) == []
    assert said({**LLAMA}) == []


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"model_type": "opt", "max_position_embeddings": 2048}, 2048),
        ({"model_type": "gpt2", "n_positions": 1024, "n_ctx": 1024}, 1024),
        ({"model_type": "mpt", "max_seq_len": 2048}, 2048),
        ({"model_type": "bloom", "seq_length": 2048, "n_positions": 2048}, None),
        ({"model_type": "falcon", "alibi": True, "max_position_embeddings": 2048}, None),
        ({"model_type": "falcon", "alibi": False, "max_position_embeddings": 2048}, 2048),
        ({"model_type": "mamba"}, None),
        (LLAMA, 2048),
        ({**LLAMA, "rope_scaling": None}, 2048),
        ({**LLAMA, "rope_scaling": {"type": "linear", "factor": 4.0}}, 8192),
        ({**LLAMA, "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, 4096),
        ({**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}, 2048),
        (
            {
                **LLAMA,
                "max_position_embeddings": 131_072,
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "original_max_position_embeddings": 8192,
                },
            },
            131_072,
        ),
        (
            {
                **LLAMA,
                "max_position_embeddings": 32_768,
                "rope_parameters": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 32_768,
                },
            },
            131_072,
        ),
        (
            {
                **LLAMA,
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0},
                    "sliding_attention": {"rope_type": "default"},
                },
            },
            16_384,
        ),
    ],
)
def test_positions_are_counted_as_the_family_counts_them(
    config: dict[str, Any], limit: int | None
) -> None:
    assert num_positions(config) == limit


def test_a_context_beyond_the_positions_is_refused() -> None:
    assert said({**OPT}, **LONG) == [
        "train.context_length: 4096 tokens, but tiny-lm has 64 positions; give at most 64, or a "
        "text model of longer context"
    ]
    assert said({**LLAMA}, **LONG) == [
        "train.context_length: 4096 tokens, but tiny-lm was trained on 2048 positions; give at "
        "most 2048, or a text model of longer context"
    ]
    assert said({**LLAMA, "rope_scaling": {"type": "linear", "factor": 2}}, **LONG) == []
    assert said({"model_type": "bloom", "architectures": ["BloomForCausalLM"]}, **LONG) == []


def test_a_cold_start_has_only_the_limits_of_tables() -> None:
    cold = {"model.init": "cold", **LONG}
    assert said({**LLAMA}, **cold) == []
    assert len(said({**OPT}, **cold)) == 1
    gptj = {"model_type": "gptj", "n_positions": 2048, "rotary_dim": 64}
    assert not is_rotary(gptj)
    assert len(said(gptj, **cold)) == 1


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({}, "has a config.json without model_type (none)"),
        (broken.CONFIGS["hubert"], "is no causal LM (hubert)"),
        ({"model_type": "t5", "is_encoder_decoder": True}, "is an encoder and a decoder (t5)"),
        (
            {"model_type": "bert", "architectures": ["BertForMaskedLM"]},
            "sees what comes after each token (BertForMaskedLM without is_decoder)",
        ),
        (
            {"model_type": "roberta", "architectures": ["RobertaForCausalLM"]},
            "sees what comes after each token (RobertaForCausalLM without is_decoder)",
        ),
        (
            {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]},
            "is no causal LM (LlamaForSequenceClassification)",
        ),
        (
            {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"]},
            "is no causal LM (Gemma3ForConditionalGeneration)",
        ),
    ],
)
def test_what_is_no_causal_language_model(config: dict[str, Any], what: str) -> None:
    assert said({**config}) == [
        f"model.text_model: tiny-lm {what}; name a causal LM, such as facebook/opt-350m"
    ]


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "bert", "architectures": ["BertLMHeadModel"], "is_decoder": True},
        {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
        {"model_type": "bloom", "architectures": ["BloomModel"]},
        {"model_type": "opt"},
        {"model_type": "llama", "architectures": None},
    ],
)
def test_what_may_well_be_one(config: dict[str, Any]) -> None:
    assert said(config) == []


@pytest.mark.parametrize(
    ("over", "what"),
    [
        ({"hidden_size": 60}, ": 8 heads cannot share its width of 60; mend its config.json"),
        (
            {"hidden_size": 56},
            ": heads of 7 features cannot hold rotary positions, pairs of them; mend its "
            "config.json",
        ),
        (
            {"num_key_value_heads": 3},
            ": 8 heads cannot share 3 key-value heads; mend its config.json",
        ),
        (
            {"hidden_size": "64"},
            ": hidden_size of its config.json is '64', not a whole number above 0; mend the file",
        ),
        (
            {"vocab_size": 0},
            ": vocab_size of its config.json is 0, not a whole number above 0; mend the file",
        ),
        (
            {"max_position_embeddings": -1},
            ": max_position_embeddings of its config.json is -1, not a whole number above 0; mend "
            "the file",
        ),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            " is quantised (gptq), which cannot be trained; name the model that it was made from",
        ),
        (
            {"torch_dtype": "int8"},
            " is quantised (int8), which cannot be trained; name the model that it was made from",
        ),
    ],
)
def test_shapes_and_types_that_cannot_be(over: dict[str, Any], what: str) -> None:
    assert said({**LLAMA, **over}) == [f"model.text_model: tiny-lm{what}"]


@pytest.mark.parametrize(
    ("over", "problems"),
    [
        ({"architectures": "LlamaForCausalLM"}, 0),
        ({"architectures": 5}, 1),
        ({"architectures": True}, 1),
        ({"architectures": {"a": 1}}, 1),
        ({"rope_scaling": {"type": ["linear"], "factor": 2}}, 0),
        ({"rope_scaling": {"type": "linear", "factor": math.inf}}, 0),
        ({"rope_parameters": {"rope_type": "yarn", "factor": math.nan}}, 0),
    ],
)
def test_values_of_other_kinds_than_any_family_writes_are_no_accident(
    over: dict[str, Any], problems: int
) -> None:
    assert len(said({**LLAMA, **over})) == problems


def test_heads_with_a_width_of_their_own_need_not_share() -> None:
    assert said({**LLAMA, "hidden_size": 60, "head_dim": 8}) == []


def test_half_precision_is_a_float() -> None:
    for dtype in ("float16", "bfloat16", "torch.float32"):
        assert said({**LLAMA, "dtype": dtype}) == []


@pytest.mark.parametrize("embedding_init", ["text_sample", "text_nearest"])
def test_units_cannot_begin_as_more_tokens_than_there_are(embedding_init: str) -> None:
    few = {**OPT, "vocab_size": 19}
    assert said(few, **{"model.embedding_init": embedding_init}) == [
        "model.embedding_init: tiny-lm has 19 tokens, fewer than the 20 units that are to begin as "
        "one each; use random or text_mean"
    ]
    assert said({**OPT, "vocab_size": 20}, **{"model.embedding_init": embedding_init}) == []
    assert said(few, **{"model.embedding_init": "text_mean"}) == []


def test_more_layers_than_there_are() -> None:
    assert said({**LLAMA}, **{"model.num_layers": 5}) == [
        "model.num_layers: tiny-lm has 4 layers, not 5; give 1..4"
    ]
    assert said({**LLAMA}, **{"model.num_layers": 4}) == []


def test_attention_that_cannot_be() -> None:
    flash = {"micro_batch": 1, "zero_stage": 1, "attention": "flash_attention_2"}
    asked = {"train.execution": flash, "train.precision": "fp32"}
    (line,) = said({**LLAMA}, **asked)
    assert line.startswith("train.execution.attention: flash_attention_2 computes in 16 bits")
    assert said({**LLAMA}, **{**asked, "train.precision": "bf16"}) == []
    (line,) = said({"model_type": "bloom"}, **{**asked, "train.precision": "bf16"})
    assert line == (
        "train.execution.attention: flash_attention_2: bloom models have none; give sdpa or eager"
    )


@pytest.mark.parametrize(
    ("over", "what"),
    [
        (
            {"model_type": "data2vec-audio"},
            "encoder.model: hubert is of model_type 'data2vec-audio', none of hubert, wav2vec2, "
            "wavlm; name an encoder of these families",
        ),
        (
            {"model_type": None},
            "encoder.model: hubert is of model_type none, none of hubert, wav2vec2, wavlm; name an "
            "encoder of these families",
        ),
        (
            {"model_type": "wav2vec2", "adapter_attn_dim": 16},
            "encoder.model: hubert has adapters, which features would be without; name the model "
            "that they were added to",
        ),
        (
            {"num_hidden_layers": 1},
            "encoder.layer: is 2, but the model has 1 layers; give 1..1",
        ),
        (
            {"conv_stride": [5, 2, 2, 2, 2, 2, 2, 2]},
            "encoder.frame_rate_hz: is 50, but the model's strides give 25; say 25",
        ),
        (
            {"num_attention_heads": 3},
            "encoder.model: hubert: 3 heads cannot share its width of 16; mend its config.json",
        ),
    ],
)
def test_encoders_that_the_recipe_does_not_mean(over: dict[str, Any], what: str) -> None:
    config = {**broken.CONFIGS["hubert"], **over}
    assert list(encoder_problems(config, recipe().encoder)) == [what]


def test_a_norm_at_the_end_is_there_or_not_named() -> None:
    encoder = recipe(**{"encoder.output": "final_norm"}).encoder
    config = broken.CONFIGS["hubert"]
    assert list(encoder_problems({**config, "do_stable_layer_norm": True}, encoder)) == []
    assert list(encoder_problems({**config, "do_stable_layer_norm": False}, encoder)) == [
        "encoder.output: hubert norms after each layer and has no norm at its end; leave it out"
    ]


def test_an_encoder_that_says_little_is_not_judged() -> None:
    assert list(encoder_problems({"model_type": "hubert"}, recipe().encoder)) == []


def test_what_is_pretrained_here_hears_waves_as_they_are() -> None:
    encoder = pretrained_recipe(**{"encoder.normalize_waveform": True}).encoder
    (line,) = pretrain_problems(encoder)
    assert line.startswith("encoder.normalize_waveform: pretraining hears waves as they are; leave")
