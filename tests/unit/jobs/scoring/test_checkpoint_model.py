"""The model of a checkpoint: as it is published at the end, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from jobs.lm.twist import build_model
from jobs.scoring.checkpoint_model import WEIGHTS, load_checkpoint
from orchestrator.errors import CorruptError, DataError, RequestError
from orchestrator.ledger import checkpoints
from orchestrator.ledger.checkpoints import FileEntry, Manifest
from orchestrator.ledger.storage import Storage, sha256_of
from orchestrator.spec.recipe import Model

NUM_UNITS = 7
SPEC = Model(text_model="lm", sha256="0" * 64, num_layers=1, init_std=0.1)


class World:
    """A training with one checkpoint, as DeepSpeed writes its weights."""

    def __init__(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        config = LlamaConfig(
            vocab_size=20,
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=8,
            tie_word_embeddings=True,
        )
        self.source = str(folder / "lm")
        LlamaForCausalLM(config).save_pretrained(self.source)
        args = {"source": self.source, "num_units": NUM_UNITS, "seed": 0}
        self.model = build_model(SPEC, **args, dtype=dtype)
        self.train = Storage(str(folder / "train"))

    def commit(self, zero_stage: int = 1) -> str:
        name = checkpoints.name_of(500, 1)
        file = Path(self.train.url, checkpoints.FOLDER, name, WEIGHTS)
        file.parent.mkdir(parents=True)
        torch.save({"module": self.model.state_dict()}, file)
        entry = FileEntry(size=file.stat().st_size, sha256=sha256_of(file))
        about = {"step": 500, "lease_n": 1, "world_size": 1, "zero_stage": zero_stage}
        manifest = Manifest(**about, cursor=0, sample_hash="", files={WEIGHTS: entry}, metrics=())
        checkpoints.commit(self.train, manifest)
        return name

    def loaded(self, name: str) -> LlamaForCausalLM:
        source, num_units = self.source, NUM_UNITS
        return load_checkpoint(self.train, name, SPEC, source=source, num_units=num_units)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_model_that_was_trained(tmp_path: Path, dtype: torch.dtype) -> None:
    world = World(tmp_path, dtype)
    loaded = world.loaded(world.commit())
    assert loaded.dtype == torch.float32
    assert loaded.config.vocab_size == NUM_UNITS
    for name, weight in world.model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], weight.float())


def test_what_is_not_there_or_not_whole_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path)
    with pytest.raises(RequestError, match="step-00000500-a0001: is gone"):
        world.loaded("step-00000500-a0001")
    name = world.commit()
    with Path(world.train.url, checkpoints.FOLDER, name, WEIGHTS).open("ab") as file:
        file.write(b"x")
    with pytest.raises(CorruptError, match=r"the manifest says .* score another checkpoint"):
        world.loaded(name)


def test_weights_that_are_spread_over_ranks_are_refused(tmp_path: Path) -> None:
    world = World(tmp_path)
    with pytest.raises(RequestError, match="ZeRO 3 has spread its weights over ranks"):
        world.loaded(world.commit(zero_stage=3))


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    world = World(tmp_path)
    with torch.no_grad():
        world.model.model.norm.weight[0] = torch.inf
    with pytest.raises(DataError, match="holds NaN or infinity"):
        world.loaded(world.commit())
