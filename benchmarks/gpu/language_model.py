"""The language model that training builds, in the shapes of OPT 125M and 350M."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any

from transformers import OPTConfig

from benchmarks.gpu.figures import Setting
from jobs.lm.twist import build_model

NUM_UNITS = 500
_SHAPES = {
    "OPT-125M": {
        "hidden_size": 768,
        "ffn_dim": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "word_embed_proj_dim": 768,
    },
    "OPT-350M": {
        "hidden_size": 1024,
        "ffn_dim": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "word_embed_proj_dim": 512,
        "do_layer_norm_before": False,
    },
}
_TINY = {
    "hidden_size": 64,
    "ffn_dim": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "word_embed_proj_dim": 64,
}


@dataclass(frozen=True)
class _FromRandomWeights:
    """What `build_model` reads of a recipe's ``model``, which needs pydantic."""

    text_model: str
    init: str = "cold"
    num_layers: int | None = None
    init_std: float | None = None
    embedding_init: str = "random"


def unit_model(setting: Setting, name: str, **options: Any) -> Any:
    """The model of a shape, from random weights, on the CPU; options are `build_model`'s."""
    shape = {**_SHAPES[name], **setting.sized({}, _TINY)}
    with tempfile.TemporaryDirectory() as folder:
        OPTConfig(**shape).save_pretrained(folder)
        return build_model(
            _FromRandomWeights(name),  # type: ignore[arg-type]
            source=folder,
            num_units=NUM_UNITS,
            seed=0,
            **options,
        )
