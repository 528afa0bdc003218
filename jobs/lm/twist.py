"""The initial language model: a text LM whose vocabulary becomes the units (arXiv 2305.13009).

In: the folder of any Hugging Face causal LM, the recipe's ``model`` section, a seed.
Out: the model with one row per unit in its tables, dropout 0, and no special tokens: token id =
unit id.

``twist`` keeps every other weight bit for bit. ``cold`` is the same architecture with every matrix
drawn anew. The unit table is drawn first in both, from the same generator, so that the two arms of
a comparison share it; or it begins as rows of the text model's table (`jobs.lm.unit_table`).
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from jobs.lm.unit_table import NO_TOKENS, RowsOf, Tokens, unit_rows
from jobs.weights import TEXT_MODEL, first_line, load_whole, tables
from orchestrator.errors import Cause, RequestError, cause_of

if TYPE_CHECKING:  # pydantic is not everywhere that a model is built
    from orchestrator.spec.recipe import Model


def build_model(
    spec: Model,
    *,
    source: str,
    num_units: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    tokens: Tokens = NO_TOKENS,
) -> Any:
    """The initial ``PreTrainedModel``; a pure function of the arguments and the folder ``source``.

    ``tokens``: of the training split; they are counted for ``embedding_init: text_nearest`` alone.

    Raises RequestError when the folder's weights are not those of its config.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    config = unit_config(spec, source)
    asked = _asked_attention(attention)
    std = init_std(spec, config)
    generator = torch.Generator().manual_seed(seed)
    if spec.init == "cold":
        config.vocab_size = num_units
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, **asked)
    else:
        model = load_whole(
            AutoModelForCausalLM,
            Path(source),
            where=TEXT_MODEL,
            may_lack=tables,
            config=config,
            dtype=dtype,
            **asked,
        )
    table_VD = model.get_input_embeddings().weight
    rows_of = unit_rows(spec.embedding_init, table_VD, num_units, std, generator, tokens)
    kept = _replace_vocabulary(model, num_units, rows_of)
    if spec.init == "cold":
        _draw_anew(model, kept, std, generator)
    # The text model's generation defaults name its special tokens, which no longer exist.
    model.generation_config = GenerationConfig()
    return model


def build_shell(
    spec: Model,
    *,
    source: str,
    num_units: int,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
) -> Any:
    """`build_model`'s result without its weights: what they lie in takes no memory until written.

    For ranks that get their part of each weight from another.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM, GenerationConfig

    config = unit_config(spec, source)
    config.vocab_size = num_units
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, **_asked_attention(attention))
    model.tie_weights()
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, empty in list(module.named_parameters(recurse=False)):
            if id(empty) not in made:
                made[id(empty)] = nn.Parameter(torch.empty_like(empty, device="cpu"))
            setattr(module, name, made[id(empty)])
    model.generation_config = GenerationConfig()
    return model


def unit_config(spec: Model, source: str) -> Any:
    """The text model's config, cut to ``num_layers``, without dropout, cache, special tokens.

    Raises RequestError for one that transformers does not know.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source)
    except Exception as error:  # of many types, by what is wrong with it
        raise _unknown(error, source) from error
    _cut(config, spec.num_layers, source)
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float | int) and not isinstance(value, bool):
            setattr(config, name, 0.0)
    # With a pad token, nn.Embedding would never learn the unit of the same number.
    config.pad_token_id = config.bos_token_id = config.eos_token_id = None
    config.use_cache = False
    return config


def init_std(spec: Model, config: Any) -> float:
    """Std of drawn weights: the recipe's, else the config's. Raises RequestError for neither.

    A config may be wrong about it: a converted checkpoint that claims 0.02 where 1/sqrt(hidden) was
    meant makes the cold arm needlessly bad and the comparison flattering.
    """
    std = (
        spec.init_std
        or getattr(config, "initializer_range", None)
        or getattr(config, "init_std", None)
    )
    if not std:
        raise RequestError(
            f"model.init_std: {spec.text_model} names no default; give one, such as "
            "1/sqrt(hidden size)"
        )
    return float(std)


def require_loadable(spec: Model, source: str) -> Any:
    """The model that `build_model` makes of a folder, without its weights.

    Of the folder's files only the headers are read. Raises RequestError when it could make none.
    """
    from transformers import AutoModelForCausalLM

    config = unit_config(spec, source)
    init_std(spec, config)
    if spec.init == "twist":
        return load_whole(
            AutoModelForCausalLM,
            Path(source),
            where=TEXT_MODEL,
            may_lack=tables,
            config=config,
            device_map="meta",
        )
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        tables(model)
    except Exception as error:  # of many types, by what is wrong with it
        raise _unknown(error, source) from error
    return model


def _asked_attention(attention: str) -> dict[str, Any]:
    # Hugging Face takes sdpa by itself where a model has it, and refuses it by name elsewhere.
    return {} if attention == "sdpa" else {"attn_implementation": attention}


def _unknown(error: Exception, source: str) -> Exception:
    """What to say of a config of which no model can be made; of a disk, its own error."""
    if cause_of(error) is not Cause.ERROR:
        return error
    return RequestError(
        f"{TEXT_MODEL}: {source}/config.json: no model can be made of it ({first_line(error)}); "
        "name a causal LM that transformers knows, without code of its own"
    )


def _cut(config: Any, num_layers: int | None, source: str) -> None:
    if num_layers is None:
        return
    if num_layers > config.num_hidden_layers:
        raise RequestError(
            f"model.num_layers: {source} has {config.num_hidden_layers} layers, not {num_layers}; "
            f"give 1..{config.num_hidden_layers}"
        )
    config.num_hidden_layers = num_layers
    if getattr(config, "layer_types", None):
        with suppress(AttributeError):  # where it follows from the number of layers
            config.layer_types = config.layer_types[:num_layers]


def _replace_vocabulary(model: Any, num_units: int, rows_of: RowsOf) -> set[int]:
    """Give the tables one row per unit; returns the ids of the parameters made here."""
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    tied = head.weight is table.weight
    table.weight = nn.Parameter(rows_of(table.weight))
    table.num_embeddings, table.padding_idx = num_units, None
    head.weight = table.weight if tied else nn.Parameter(rows_of(head.weight))
    head.out_features = num_units
    if head.bias is not None:
        head.bias = nn.Parameter(torch.zeros(num_units, dtype=head.bias.dtype))
    model.config.vocab_size = num_units
    return {id(table.weight), id(head.weight)}


@torch.no_grad()
def _draw_anew(model: Any, kept: set[int], std: float, generator: torch.Generator) -> None:
    for name, parameter in model.named_parameters():
        if id(parameter) in kept:
            continue
        if parameter.dim() >= 2:
            parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))
        else:
            parameter.fill_(0.0 if name.endswith("bias") else 1.0)
