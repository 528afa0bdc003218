"""What the config of a published model says against a recipe, before any weights are read.

In: ``config.json`` as plain data, the recipe. Out: one line for each thing that could not be
trained, under the recipe's own keys. Pure, so that a plan says it where the file is at hand, and a
node where it was fetched, in the same words.

Whatever a config does not say is not judged: its model's defaults are known to transformers alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

from orchestrator.quantities import SAMPLE_RATE_HZ

if TYPE_CHECKING:  # the encoder needs this module where there is no pydantic
    from orchestrator.spec.recipe import Encoder, Recipe

Config = Mapping[str, Any]

_WIDTH = ("hidden_size", "n_embd", "d_model")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads")
_KEY_HEADS = ("num_key_value_heads", "num_kv_heads")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")
_VOCABULARY = ("vocab_size",)
_TABLE_WIDTH = ("word_embed_proj_dim",)
_COUNTS = (_WIDTH, _HEADS, _KEY_HEADS, _LAYERS, _POSITIONS, _VOCABULARY, _TABLE_WIDTH)
"""Names under which families of models give the same size."""

ENCODERS = {"hubert": "Hubert", "wav2vec2": "Wav2Vec2", "wavlm": "WavLM"}
"""Families of encoders whose features are exact here: what transformers' classes begin with."""
_CAUSAL = re.compile(r"(ForCausalLM|LMHeadModel)$")
_BODY = re.compile(r"(?<!LMHead)Model$")
_SEES_BOTH_WAYS = frozenset(
    {
        *("albert", "bert", "bert-generation", "big_bird", "camembert", "convbert"),
        *("data2vec-text", "deberta"),
        *("deberta-v2", "distilbert", "electra", "ernie", "esm", "eurobert", "fnet", "funnel"),
        *("ibert", "layoutlm", "longformer", "luke", "megatron-bert", "mobilebert", "modernbert"),
        *("mpnet", "nomic_bert", "nystromformer", "reformer", "rembert", "roberta"),
        *("roberta-prelayernorm", "xlm", "xlnet"),
        *("roc_bert", "roformer", "squeezebert", "xlm-roberta", "xlm-roberta-xl", "xmod", "yoso"),
    }
)
"""Families that see what comes after a token, unless their config says ``is_decoder``."""
_OF_AUDIO = frozenset(
    {
        *("data2vec-audio", "encodec", "hubert", "mimi", "moonshine", "sew", "sew-d", "speecht5"),
        *("unispeech", "unispeech-sat", "vits", "wav2vec2", "wav2vec2-bert", "wav2vec2-conformer"),
        *("wavlm", "whisper"),
    }
)
_ROTARY_KEYS = ("rope_theta", "rope_scaling", "rope_parameters", "rotary_pct", "rotary_emb_base")
_ROTARY = frozenset({"falcon", "gemma", "gpt_neox", "llama", "mistral", "phi", "qwen2", "qwen3"})
"""Families with rotary positions whose older configs do not say so. Not ``gptj`` and ``codegen``:
theirs is a table of fixed length."""
_SCALED_FROM_ORIGINAL = frozenset({"linear", "dynamic", "yarn"})
"""Kinds of rope scaling whose factor may not be in ``max_position_embeddings`` yet."""
_WITHOUT_FLASH = frozenset({"bloom", "codegen", "mpt", "openai-gpt", "rwkv", "xglm", "xlnet"})
"""Families that have no FlashAttention in transformers 5 (``_supports_flash_attn``)."""
_FLOATS = frozenset({"float64", "float32", "float16", "bfloat16"})


def text_model_problems(config: Config, recipe: Recipe) -> Iterator[str]:
    """Why the recipe's language model cannot be made of the text model with this config."""
    name = recipe.model.text_model
    if other := _other_kind(config):
        yield (f"model.text_model: {name} {other}; name a causal LM, such as facebook/opt-350m")
        return
    yield from _bad_sizes(config, f"model.text_model: {name}")
    if scheme := _quantised(config):
        yield (
            f"model.text_model: {name} is quantised ({scheme}), which cannot be trained; "
            "name the model that it was made from"
        )
    yield from _too_many_layers(config, recipe)
    yield from _too_long(config, recipe)
    yield from _too_few_tokens(config, recipe)
    yield from _attention_problems(config, recipe)


def _too_few_tokens(config: Config, recipe: Recipe) -> Iterator[str]:
    num_tokens, num_units = _size(config, _VOCABULARY), recipe.tokenizer.num_clusters
    is_of_one_each = recipe.model.embedding_init in ("text_sample", "text_nearest")
    if is_of_one_each and num_tokens and num_tokens < num_units:
        yield (
            f"model.embedding_init: {recipe.model.text_model} has {num_tokens} tokens, fewer than "
            f"the {num_units} units that are to begin as one each; use random or text_mean"
        )


def encoder_problems(config: Config, encoder: Encoder) -> Iterator[str]:
    """Why units cannot be made of the layer that the recipe names of the model with this config."""
    name = encoder.model or "the pretrained encoder"
    if (family := config.get("model_type")) not in ENCODERS:
        yield (
            f"encoder.model: {name} is of model_type {_shown(family)}, none of "
            f"{', '.join(ENCODERS)}; name an encoder of these families"
        )
        return
    if config.get("adapter_attn_dim") or config.get("add_adapter"):
        yield (
            f"encoder.model: {name} has adapters, which features would be without; name the model "
            "that they were added to"
        )
    yield from _bad_sizes(config, f"encoder.model: {name}")
    num_layers = _size(config, _LAYERS)
    if num_layers and encoder.layer > num_layers:
        yield (
            f"encoder.layer: is {encoder.layer}, but the model has {num_layers} layers; "
            f"give 1..{num_layers}"
        )
    if encoder.output == "final_norm" and config.get("do_stable_layer_norm") is False:
        yield (
            f"encoder.output: {name} norms after each layer and has no norm at its end; "
            "leave it out"
        )
    strides = config.get("conv_stride")
    if isinstance(strides, list | tuple) and all(_is_size(stride) for stride in strides):
        yield from _other_frame_rate(strides, encoder)


def preprocessor_problems(preprocessor: Config | None, encoder: Encoder) -> Iterator[str]:
    """What the recipe should say of waves itself.

    ``preprocessor``: ``preprocessor_config.json``, None where it is not there. The digest of
    weights does not pin that file, as a commit does, and a key must.
    """
    if encoder.normalize_waveform is not None or not encoder.model:
        return
    if preprocessor is None and not encoder.sha256:
        yield (
            f"encoder.normalize_waveform: {encoder.model} has no preprocessor_config.json, which "
            "would say whether it takes waves of mean 0 and variance 1; say true or false here"
        )
    if encoder.sha256 and _normalizes(preprocessor or {}):
        yield (
            "encoder.normalize_waveform: preprocessor_config.json of "
            f"{encoder.model} says do_normalize, which sha256 does not pin; say true here, or "
            "false for a codebook that was fitted without"
        )


def normalizes_waveform(preprocessor: Config, encoder: Encoder) -> bool:
    """Whether the encoder takes waves of mean 0 and variance 1, or as they are."""
    said = encoder.normalize_waveform
    return _normalizes(preprocessor) if said is None else said


def _normalizes(preprocessor: Config) -> bool:
    return preprocessor.get("do_normalize") is True


def pretrain_problems(encoder: Encoder) -> Iterator[str]:
    """Why an encoder that is pretrained here would not be the one that its recipe means."""
    if encoder.pretrain:
        yield from _other_frame_rate(encoder.pretrain.conv_stride, encoder)
    if encoder.pretrain and encoder.normalize_waveform:
        yield (
            "encoder.normalize_waveform: pretraining hears waves as they are; leave it out, or "
            "name a model that was trained on normalised ones"
        )


def _other_frame_rate(strides: Sequence[int], encoder: Encoder) -> Iterator[str]:
    frame_rate_hz = SAMPLE_RATE_HZ / math.prod(strides)
    if frame_rate_hz != encoder.frame_rate_hz:
        yield (
            f"encoder.frame_rate_hz: is {encoder.frame_rate_hz:g}, but the model's strides "
            f"give {frame_rate_hz:g}; say {frame_rate_hz:g}"
        )


def num_positions(config: Config) -> int | None:
    """Tokens that one sequence may have; None where the config sets no limit.

    ALiBi (arXiv 2108.12409) has none in BLOOM and Falcon. Rotary positions reach as far as the
    model was trained or scaled to (``rope_scaling``; ``rope_parameters`` in transformers 5). OPT's
    table has two rows more than its config says, for its offset.
    """
    if config.get("model_type") == "bloom" or config.get("alibi") is True:
        return None
    limit = _size(config, _POSITIONS)
    if limit is None:
        return None
    return max([limit, *(_scaled(rope, limit) for rope in _ropes(config))])


def is_rotary(config: Config) -> bool:
    """Whether positions are angles, computed for any length, rather than rows of a table."""
    return config.get("model_type") in _ROTARY or any(key in config for key in _ROTARY_KEYS)


def _other_kind(config: Config) -> str:
    """What the model is instead of a causal language model; empty when it may well be one."""
    family, listed = config.get("model_type"), config.get("architectures")
    names = listed if isinstance(listed, list | tuple) else [listed] if listed else []
    if not isinstance(family, str):
        return f"has a config.json without model_type ({_shown(family)})"
    shown = ", ".join(str(name) for name in names) or family
    is_decoder = config.get("is_decoder") is True
    if family in _SEES_BOTH_WAYS and not is_decoder:
        return f"sees what comes after each token ({shown} without is_decoder)"
    if config.get("is_encoder_decoder") is True and not is_decoder:
        return f"is an encoder and a decoder ({shown})"
    known = [str(name) for name in names if _CAUSAL.search(str(name)) or _BODY.search(str(name))]
    if family in _OF_AUDIO or (names and not known):
        return f"is no causal LM ({shown})"
    return ""


def _bad_sizes(config: Config, where: str) -> Iterator[str]:
    """Sizes that are no counts, and heads that do not share the width."""
    found = [(n, config[n]) for names in _COUNTS for n in names if config.get(n) is not None]
    for name, value in found:
        if not _is_size(value):
            yield (
                f"{where}: {name} of its config.json is {_shown(value)}, not a whole number above "
                "0; mend the file"
            )
    yield from (f"{where}: {problem}; mend its config.json" for problem in _bad_heads(config))


def _bad_heads(config: Config) -> Iterator[str]:
    width, heads, key_heads = (_size(config, names) for names in (_WIDTH, _HEADS, _KEY_HEADS))
    has_head_width = any(value and key.endswith("head_dim") for key, value in config.items())
    if width and heads and not has_head_width:
        if width % heads:
            yield f"{heads} heads cannot share its width of {width}"
        elif is_rotary(config) and width // heads % 2:
            yield f"heads of {width // heads} features cannot hold rotary positions, pairs of them"
    if heads and key_heads and heads % key_heads:
        yield f"{heads} heads cannot share {key_heads} key-value heads"


def _quantised(config: Config) -> str:
    """How the weights are packed, where they are no floats; empty otherwise."""
    packed = config.get("quantization_config")
    if isinstance(packed, Mapping):
        return str(packed.get("quant_method") or "quantization_config")
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return "" if dtype.removeprefix("torch.") in _FLOATS else dtype


def _too_many_layers(config: Config, recipe: Recipe) -> Iterator[str]:
    asked, there = recipe.model.num_layers, _size(config, _LAYERS)
    if asked and there and asked > there:
        yield (
            f"model.num_layers: {recipe.model.text_model} has {there} layers, not {asked}; "
            f"give 1..{there}"
        )


def _too_long(config: Config, recipe: Recipe) -> Iterator[str]:
    limit, length = num_positions(config), recipe.train.context_length
    if limit is None or length <= limit or (is_rotary(config) and recipe.model.init == "cold"):
        return
    name = recipe.model.text_model
    why = "was trained on" if is_rotary(config) else "has"
    yield (
        f"train.context_length: {length} tokens, but {name} {why} {limit} positions; "
        f"give at most {limit}, or a text model of longer context"
    )


def _attention_problems(config: Config, recipe: Recipe) -> Iterator[str]:
    execution = recipe.train.execution
    if execution is None or execution.attention != "flash_attention_2":
        return
    field = "train.execution.attention: flash_attention_2"
    if recipe.train.precision == "fp32":
        yield f"{field} computes in 16 bits, not in fp32; give sdpa, or train.precision bf16"
    if (family := config.get("model_type")) in _WITHOUT_FLASH:
        yield f"{field}: {family} models have none; give sdpa or eager"


def _ropes(config: Config) -> Iterator[Config]:
    """The parameters of rotary positions: one mapping, or one for each type of layer."""
    for key in ("rope_scaling", "rope_parameters"):
        value = config.get(key)
        if isinstance(value, Mapping):
            yield value
            yield from (part for part in value.values() if isinstance(part, Mapping))


def _scaled(rope: Config, limit: int) -> int:
    """Positions after scaling; those before where its kind or factor says nothing."""
    kind, factor = str(rope.get("rope_type", rope.get("type"))), rope.get("factor")
    if kind not in _SCALED_FROM_ORIGINAL or not isinstance(factor, int | float):
        return 0
    if not math.isfinite(factor):
        return 0
    original = rope.get("original_max_position_embeddings")
    return math.floor((original if _is_size(original) else limit) * factor)


def _size(config: Config, names: tuple[str, ...]) -> int | None:
    """The first of these that is there, when it is a count."""
    value = next((config[name] for name in names if config.get(name) is not None), None)
    return value if _is_size(value) else None


def _is_size(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _shown(value: Any) -> str:
    return "none" if value is None else repr(value)[:60]
