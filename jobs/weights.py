"""Loads a Hugging Face model only when its weights are all there, and are those of its config.

Transformers draws what a file lacks at random and passes over what it does not know: one renamed
tensor is another model in every process. So what it reports is judged here, in the same words for
text LMs, encoders and trained models.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.errors import Cause, OrchestratorError, RequestError, cause_of

TEXT_MODEL = "model.text_model"
"""The key of the recipe that messages about the text model begin with."""
SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"
_SHOWN = 3
_REMEDY = "give the weights that belong to its config.json, in Hugging Face format"
_BUFFERS = re.compile(
    r"(^|\.)(rotary_emb\.inv_freq|(attn|attention)\.(bias|masked_bias)|position_ids|"
    r"num_batches_tracked)$"
)
"""What older releases saved though it follows from the config, and counters."""
_HEADS = re.compile(
    r"^(lm_head|embed_out|score|classifier|qa_outputs|v_head|value_head|"
    r"projector|final_proj|label_embs_concat|quantizer|project_q|project_hid)(\.|$)"
)
"""Heads that a checkpoint has for another task than ours."""
_ONLY_IN_TRAINING = re.compile(r"(^|\.)masked_spec_embed$")
"""What an encoder that is not trained has no use for."""
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks|layer)\.(\d+)\.")
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


def load_whole(
    model_class: Any,
    folder: Path,
    *,
    where: str,
    may_lack: Callable[[Any], set[str]] = lambda _model: set(),
    refusal: type[OrchestratorError] = RequestError,
    **options: Any,
) -> Any:
    """The model in a folder, every weight of it from its file; ``options`` are for transformers.

    ``where`` begins the message of ``refusal``, which names the file and each tensor that is
    missing, misshapen, mistyped, unexpected or no number. ``may_lack`` names weights that the
    caller replaces. Passed over: layers beyond the config's, heads of other tasks, buffers that
    follow from the config. Raises ``refusal``, OSError of a disk.
    """
    try:
        model, report = model_class.from_pretrained(
            str(folder),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            local_files_only=True,
            **options,
        )
        types = dtypes(folder)
    except Exception as error:  # of many libraries; what is not about the weights is raised again
        if isinstance(error, OrchestratorError) or cause_of(error) is not Cause.ERROR:
            raise
        problem = f"cannot be loaded ({first_line(error)})"
    else:
        replaced = may_lack(model)
        problem = _problem(report, types, replaced, model.config.num_hidden_layers)
        problem = problem or _no_number(model, replaced)
    if problem:
        raise refusal(f"{where}: {_file(folder)}: {problem}; {_REMEDY}")
    return model


def first_line(error: BaseException) -> str:
    """What an error says first, with what follows a colon; its type where it says nothing."""
    first, *more = str(error).strip().splitlines() or [type(error).__name__]
    return f"{first} {more[0].strip()}" if more and first.endswith(":") else first


def dtypes(folder: Path) -> dict[str, str]:
    """The type of every tensor in the weights files of a folder, in safetensors' words."""
    from safetensors import safe_open

    types: dict[str, str] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, "pt") as file:
            types |= {name: str(file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118 (no mapping)
    return types or _pickled_dtypes(folder)


def tables(model: Any) -> set[str]:
    """Names of the weights that depend on the vocabulary: the embedding table, and the head."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings())
    ids = {id(parameter) for module in modules for parameter in module.parameters()}
    named = model.named_parameters(remove_duplicate=False)
    return {name for name, parameter in named if id(parameter) in ids}


def _pickled_dtypes(folder: Path) -> dict[str, str]:
    import torch

    names = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16"}
    names[torch.bfloat16] = "BF16"
    types: dict[str, str] = {}
    for path in sorted(folder.glob("pytorch_model*.bin")):
        state = torch.load(path, map_location="meta", weights_only=True)
        types |= {name: names.get(t.dtype, str(t.dtype)) for name, t in state.items()}
    return types


def _problem(
    report: Mapping[str, Any], types: Mapping[str, str], replaced: set[str], num_layers: int
) -> str:
    """The first ways in which the weights are not those of the config; empty when they are."""
    found = list(_problems(report, types, replaced, num_layers))
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more


def _problems(
    report: Mapping[str, Any], types: Mapping[str, str], replaced: set[str], num_layers: int
) -> Iterator[str]:
    """Each way in which the weights are not those of the config, worst first."""
    unexpected = set(report["unexpected_keys"])
    for name in sorted(set(report["missing_keys"]) - replaced):
        if not (_BUFFERS.search(name) or _ONLY_IN_TRAINING.search(name)):
            yield f"{name} is missing"
    for name, is_shape, should_be in sorted(report["mismatched_keys"]):
        if name not in replaced:
            yield f"{name} has shape {list(is_shape)}, not {list(should_be)}"
    for name, dtype in sorted(types.items()):
        used = name not in unexpected and not _BUFFERS.search(name)
        if used and dtype not in _FLOATS and not _is_any(name, replaced):
            yield f"{name} is of type {dtype}, not a float"
    for name in sorted(unexpected):
        if not _is_unused(name, num_layers):
            yield f"{name} is unexpected"


def _no_number(model: Any, replaced: set[str]) -> str:
    """The first weight with NaN or infinity in it; empty where there is none, or only shapes are.

    One is enough to make every unit, or every loss, the same.
    """
    import torch

    for name, weight in model.named_parameters():
        total = 0.0 if weight.is_meta else weight.detach().sum(dtype=torch.float64).item()
        if not math.isfinite(total) and name not in replaced:
            return f"{name} holds NaN or infinity"
    return ""


def _is_unused(name: str, num_layers: int) -> bool:
    layer = _LAYER.search(name)
    beyond = layer is not None and int(layer[1]) >= num_layers
    return beyond or bool(_BUFFERS.search(name) or _HEADS.search(name))


def _is_any(name: str, names: set[str]) -> bool:
    """Whether a name in a file is one of the model's, which may begin with its body's name."""
    return any(own == name or own.endswith(f".{name}") for own in names)


def _file(folder: Path) -> Path:
    """What a message points at: the one file of weights, else the folder."""
    one = [folder / name for name in (SAFETENSORS, PICKLED) if (folder / name).is_file()]
    return one[0] if one else folder
