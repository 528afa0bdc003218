"""What scores read: the utterances of a split that was held out, and the trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch

from jobs.attempt import Attempt
from jobs.lm.token_stream import bin_name, index_name, open_tokens
from jobs.scoring import unit_model
from orchestrator.errors import DataError
from orchestrator.ledger.storage import Storage


class HeldOut:
    """The utterances of one split."""

    def __init__(self, pack: Storage, name: str, cache: Path) -> None:
        tokens = open_tokens(pack.fetch(bin_name(name), cache))
        index = pq.read_table(pack.fetch(index_name(name), cache))
        offsets, lengths = index["offset"].to_numpy(), index["num_tokens"].to_numpy()
        self.name = name
        self.ids: list[str] = index["id"].to_pylist()
        self.num_samples = index["num_samples"].to_numpy()
        self.utterances = [tokens[o : o + n] for o, n in zip(offsets, lengths, strict=True)]


def load_model(attempt: Attempt) -> Any:
    """The trained model in fp32, ready to score; on the accelerator where there is one.

    Raises DataError when its weights are not those of its config.
    """
    torch.set_num_threads(attempt.resources.cpus_per_worker)
    train, cache = attempt.upstream["train"].storage, attempt.cache
    for path in train.list("model"):
        train.fetch(path, cache)
    folder = (train.local_root or cache) / "model"
    device = torch.device("cuda" if attempt.resources.gpus_per_node else "cpu")
    return unit_model.load_model(folder, where="train", refusal=DataError, device=device)
