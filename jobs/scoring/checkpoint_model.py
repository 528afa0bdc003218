"""The language model of a checkpoint, while its training goes on or after it has ended.

In: a committed checkpoint of a train artifact, the recipe's ``model`` section and the text model's
folder, of which the config alone is read. Out: the model as the training would publish it then.
The digest is verified before anything is unpickled.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch

from jobs.lm.twist import unit_config
from orchestrator.errors import CorruptError, DataError, RequestError
from orchestrator.ledger import checkpoints
from orchestrator.ledger.checkpoints import Manifest
from orchestrator.ledger.storage import Storage
from orchestrator.spec.recipe import Model

WEIGHTS = "mp_rank_00_model_states.pt"
"""Where DeepSpeed has the whole model in, unless ZeRO 3 has spread it over ranks."""


def load_checkpoint(train: Storage, name: str, spec: Model, *, source: str, num_units: int) -> Any:
    """The model in fp32, on the CPU, ready to score.

    Raises RequestError for a checkpoint that is not there, or of ZeRO 3; CorruptError for bytes
    that are not those of its manifest; DataError for weights that are no numbers.
    """
    from transformers import AutoModelForCausalLM

    config = unit_config(spec, source)
    config.vocab_size = num_units
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(_weights(train, _manifest(train, name)))
    if not all(weight.isfinite().all() for weight in model.parameters()):
        raise DataError(f"{train.url}: {name} holds NaN or infinity; score an earlier one")
    return model.eval()


def _manifest(train: Storage, name: str) -> Manifest:
    found = {manifest.name: manifest for manifest in checkpoints.committed(train)}
    if name not in found:
        raise RequestError(f"{train.url}: {name}: is gone; score one that is kept, or all of it")
    if found[name].zero_stage == 3:
        raise RequestError(
            f"{train.url}: {name}: ZeRO 3 has spread its weights over ranks; score the training "
            "when it is finished"
        )
    return found[name]


def _weights(train: Storage, manifest: Manifest) -> dict[str, torch.Tensor]:
    with tempfile.TemporaryDirectory(prefix="checkpoint-") as cache:
        if problem := checkpoints.fetch_verified(train, manifest, [WEIGHTS], Path(cache)):
            raise CorruptError(f"{train.url}/{problem}; score another checkpoint")
        path = f"{checkpoints.FOLDER}/{manifest.name}/{WEIGHTS}"
        file = train.fetch(path, Path(cache)) if train.local_root else Path(cache, path)
        state = torch.load(file, map_location="cpu", weights_only=False)
    weights: dict[str, torch.Tensor] = state["module"]
    return weights
