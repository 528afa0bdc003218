from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    OPTConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from jobs.lm.twist import build_model, build_shell, require_loadable
from jobs.text_model import require_fit, verify_weights
from orchestrator.errors import CorruptError, RequestError, SpecErrors
from orchestrator.ledger.storage import sha256_of
from orchestrator.plan.model_config import is_rotary, num_positions
from orchestrator.spec.recipe import Model
from tests.unit.orchestrator.recipes import recipe

NUM_UNITS, STD = 20, 0.05
OPT = {"hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIGS: dict[str, PreTrainedConfig] = {
    "opt": OPTConfig(vocab_size=50, word_embed_proj_dim=16, max_position_embeddings=32, **OPT),
    "opt-projected": OPTConfig(
        vocab_size=50,
        word_embed_proj_dim=8,
        do_layer_norm_before=False,
        max_position_embeddings=32,
        **OPT,
    ),
    "bloom": BloomConfig(vocab_size=50, hidden_size=16, n_layer=2, n_head=2, hidden_dropout=0.1),
    "gpt2": GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32),
    "pythia": GPTNeoXConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        attention_dropout=0.1,
    ),
    "llama": LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    ),
    "qwen2": Qwen2Config(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=2048,
        intermediate_size=32,
        tie_word_embeddings=True,
    ),
    "llama-tied": LlamaConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        tie_word_embeddings=True,
    ),
}
TABLES = {"opt", "opt-projected", "gpt2"}
"""Whose positions are rows of a table."""
TIED = {"gpt2", "opt", "opt-projected", "bloom", "qwen2", "llama-tied"}


@pytest.fixture(scope="module", params=CONFIGS)
def text_lm(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp(request.param)
    model = AutoModelForCausalLM.from_config(CONFIGS[request.param])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))  # no bias is zero, no norm is one
    model.save_pretrained(folder)
    return request.param, folder


def spec(init: str = "twist", **fields: object) -> Model:
    return Model.model_validate(
        {"text_model": "x", "revision": "0", "init": init, "init_std": STD, **fields}
    )


def build(folder: Path, *, seed: int = 0, **fields: object) -> torch.nn.Module:
    return build_model(spec(**fields), source=str(folder), num_units=NUM_UNITS, seed=seed)


def is_vocabulary(model: torch.nn.Module, parameter: torch.Tensor) -> bool:
    tables = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    return any(parameter is table for table in tables)


def test_twist_keeps_the_body_bit_for_bit(text_lm: tuple[str, Path]) -> None:
    _, folder = text_lm
    original = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    model = build(folder)
    body = {n: p for n, p in model.named_parameters() if not is_vocabulary(model, p)}
    assert len(body) > 10
    for name, parameter in body.items():
        assert torch.equal(parameter, original[name]), name


def test_the_body_answers_as_the_text_models_does(text_lm: tuple[str, Path]) -> None:
    """Buffers, positions, projections and the norm after a table included, and dropout is off."""
    _, folder = text_lm
    text = AutoModelForCausalLM.from_pretrained(folder).eval()
    units = build(folder).train()
    width = text.get_input_embeddings().weight.shape[1]
    embeddings_BLD = torch.randn((2, 7, width), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        answers = [m.base_model(inputs_embeds=embeddings_BLD)[0] for m in (text, units)]
    assert torch.equal(*answers)


def test_units_begin_as_draws_of_the_seed(text_lm: tuple[str, Path]) -> None:
    """The unit table is drawn first, then a head of its own: what both arms, and keys, rely on."""
    name, folder = text_lm
    model, generator = build(folder, seed=3), torch.Generator().manual_seed(3)
    table = model.get_input_embeddings().weight
    tables = [table] if name in TIED else [table, model.get_output_embeddings().weight]
    for weight in tables:
        drawn_KD = torch.empty(weight.shape).normal_(0.0, STD, generator=generator)
        assert torch.equal(weight, drawn_KD)


@pytest.mark.parametrize("embedding_init", ["text_mean", "text_sample", "text_nearest"])
def test_units_may_begin_as_text_tokens(text_lm: tuple[str, Path], embedding_init: str) -> None:
    """Table and head take the rows of the same tokens, and the body stays the text model's."""
    _, folder = text_lm
    text = AutoModelForCausalLM.from_pretrained(folder)
    tokens = np.random.default_rng(0).integers(0, NUM_UNITS, 500).astype(np.uint16)
    model = build_model(
        spec(embedding_init=embedding_init),
        source=str(folder),
        num_units=NUM_UNITS,
        seed=0,
        tokens=tokens,
    )
    old_VD, old_head_VD = (t.weight for t in (text.get_input_embeddings(), text.lm_head))
    new_KD, new_head_KD = (t.weight for t in (model.get_input_embeddings(), model.lm_head))
    if embedding_init == "text_mean":
        torch.testing.assert_close(new_KD, old_VD.mean(0).expand(NUM_UNITS, -1))
        torch.testing.assert_close(new_head_KD, old_head_VD.mean(0).expand(NUM_UNITS, -1))
    else:
        chosen = [(old_VD == row).all(1).nonzero().item() for row in new_KD]
        assert len(set(chosen)) == NUM_UNITS
        assert torch.equal(new_head_KD, old_head_VD[chosen])
    original = dict(text.named_parameters())
    for name, parameter in model.named_parameters():
        if not is_vocabulary(model, parameter):
            assert torch.equal(parameter, original[name]), name
    model(input_ids=torch.arange(NUM_UNITS)[None]).logits.logsumexp(-1).sum().backward()


def test_a_shell_is_the_model_but_for_its_weights(text_lm: tuple[str, Path]) -> None:
    _, folder = text_lm
    for init in ("twist", "cold"):
        whole = build(folder, init=init).bfloat16()
        shell = build_shell(
            spec(init), source=str(folder), num_units=NUM_UNITS, dtype=torch.bfloat16
        )
        pairs = zip(whole.named_parameters(), shell.named_parameters(), strict=True)
        for (name, weight), (same_name, empty) in pairs:
            assert (name, weight.shape, weight.dtype, weight.requires_grad) == (
                same_name, empty.shape, empty.dtype, empty.requires_grad,
            ), name  # fmt: skip
        buffers = dict(build(folder, init=init).named_buffers())
        for name, buffer in shell.named_buffers():
            assert torch.equal(buffer.float(), buffers.pop(name)), name
        assert not buffers
        shell.load_state_dict(whole.state_dict())
        assert torch.equal(whole(tokens_of(8)).logits, shell(tokens_of(8)).logits)


def test_a_shell_takes_no_memory(tmp_path: Path) -> None:
    LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=12, vocab_size=64,
        num_attention_heads=16,
    ).save_pretrained(tmp_path)  # fmt: skip
    before = psutil.Process().memory_info().rss
    shell = build_shell(spec(), source=str(tmp_path), num_units=NUM_UNITS)
    size = sum(p.numel() * p.element_size() for p in shell.parameters())
    assert size > 3e9
    assert psutil.Process().memory_info().rss - before < size / 20


def test_the_vocabulary_is_the_units(text_lm: tuple[str, Path]) -> None:
    name, folder = text_lm
    model = build(folder)
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert table.weight.shape[0] == head.weight.shape[0] == model.config.vocab_size == NUM_UNITS
    assert (head.weight is table.weight) == (name in TIED)
    assert table.padding_idx is None
    assert table.weight.std().item() == pytest.approx(STD, rel=0.2)
    tokens_BL = torch.arange(NUM_UNITS)[None]
    assert model(input_ids=tokens_BL).logits.shape == (1, NUM_UNITS, NUM_UNITS)
    model(input_ids=tokens_BL).logits.logsumexp(-1).sum().backward()
    assert table.weight.grad.abs().sum(1).min() > 0, "a unit that cannot learn"


def test_training_mode_is_deterministic(text_lm: tuple[str, Path]) -> None:
    _, folder = text_lm
    model = build(folder).train()
    tokens_BL = torch.arange(NUM_UNITS)[None]
    assert torch.equal(model(input_ids=tokens_BL).logits, model(input_ids=tokens_BL).logits)


def test_cold_differs_everywhere_but_in_the_unit_table(text_lm: tuple[str, Path]) -> None:
    _, folder = text_lm
    warm, cold = build(folder), build(folder, init="cold")
    warm_parameters = dict(warm.named_parameters())
    assert {n: p.shape for n, p in cold.named_parameters()} == {
        n: p.shape for n, p in warm_parameters.items()
    }
    for name, parameter in cold.named_parameters():
        if is_vocabulary(cold, parameter):
            assert torch.equal(parameter, warm_parameters[name]), name
            continue
        assert not torch.equal(parameter, warm_parameters[name]), name
        if parameter.dim() == 1:
            assert parameter.unique().tolist() == [0.0 if name.endswith("bias") else 1.0], name
        else:
            assert parameter.std().item() == pytest.approx(STD, rel=0.25), name


@pytest.mark.parametrize("init", ["twist", "cold"])
def test_the_seed_decides(text_lm: tuple[str, Path], init: str) -> None:
    _, folder = text_lm
    first, again, other = (build(folder, init=init, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_cut_to_the_first_layers(text_lm: tuple[str, Path]) -> None:
    _, folder = text_lm
    whole, cut = build(folder), build(folder, num_layers=1)
    kept = {n for n, _ in cut.named_parameters()}
    assert 0 < len(kept) < len(list(whole.named_parameters()))
    state = whole.state_dict()
    assert all(torch.equal(p, state[n]) for n, p in cut.named_parameters())


def test_more_layers_than_there_are(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(CONFIGS["llama"]).save_pretrained(tmp_path)
    with pytest.raises(RequestError, match=r"has 2 layers, not 3; give 1\.\.2"):
        build(tmp_path, num_layers=3)


@pytest.mark.parametrize("init", ["twist", "cold"])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "chatglm"}, "model type `chatglm`"),
        ({"layer_types": ["full_attention"]}, "number of `layer_types`"),
        ({"hidden_act": "nosuch"}, "nosuch"),
        ({"head_dim": 7}, "even rotary dimension"),
    ],
    ids=["code of its own", "layers", "activation", "rotary"],
)
def test_a_config_of_which_no_model_can_be_made(
    tmp_path: Path, init: str, change: dict[str, object], says: str
) -> None:
    """It is said before any audio is encoded, of a cold arm too, which reads no weights."""
    AutoModelForCausalLM.from_config(CONFIGS["llama"]).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RequestError, match=r"^model\.text_model: ") as raised:
        require_loadable(spec(init), str(tmp_path))
    assert says in str(raised.value)


def test_layers_whose_types_follow_from_their_number(tmp_path: Path) -> None:
    config = MambaConfig(vocab_size=50, hidden_size=16, state_size=4, num_hidden_layers=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert build(tmp_path, num_layers=1).config.num_hidden_layers == 1  # type: ignore[union-attr]


def tokens_of(length: int) -> torch.Tensor:
    return torch.zeros((1, length), dtype=torch.long)


def test_a_sequence_may_be_as_long_as_the_config_is_read(text_lm: tuple[str, Path]) -> None:
    """What a plan says of positions is what the model does."""
    name, folder = text_lm
    config = json.loads((folder / "config.json").read_text())
    model, limit = build(folder).eval(), num_positions(config) or 64
    assert model(input_ids=tokens_of(limit)).logits.shape[1] == limit
    if name in TABLES:
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=tokens_of(limit + 1))
    else:
        assert num_positions(config) is None or is_rotary(config)
        assert model(input_ids=tokens_of(limit + 1)).logits.shape[1] == limit + 1


def test_rotary_positions_may_lie_in_a_table_too(tmp_path: Path) -> None:
    sizes = {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32}
    config = GPTJConfig(**sizes, rotary_dim=4)
    model = AutoModelForCausalLM.from_config(config)
    assert not is_rotary(config.to_dict())
    assert num_positions(config.to_dict()) == 32
    assert model(input_ids=tokens_of(32)).logits.shape[1] == 32
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=tokens_of(33))


def test_a_recipe_that_the_config_forbids_is_refused(text_lm: tuple[str, Path]) -> None:
    name, folder = text_lm
    longer = {"context_length": 4096, "global_batch_tokens": 4096, "steps": 1}
    require_fit(recipe(**{"model.text_model": name}), str(folder))
    if name != "bloom":
        with pytest.raises(SpecErrors, match=r"^train.context_length: 4096 tokens, but"):
            require_fit(recipe(train={**longer, "precision": "fp32"}), str(folder))
    with pytest.raises(SpecErrors, match=r"^model.num_layers: .* has 2 layers, not 9"):
        require_fit(recipe(**{"model.num_layers": 9}), str(folder))


def test_survives_saving(text_lm: tuple[str, Path], tmp_path: Path) -> None:
    _, folder = text_lm
    model = build(folder)
    model.save_pretrained(tmp_path)
    back = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens_BL = torch.arange(NUM_UNITS)[None]
    assert torch.equal(
        model.eval()(input_ids=tokens_BL).logits, back.eval()(input_ids=tokens_BL).logits
    )


def test_weights_are_pinned(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    with pytest.raises(CorruptError, match="the recipe says 0000"):
        verify_weights(spec(sha256="0" * 64), str(tmp_path))
    verify_weights(spec(sha256=sha256_of(tmp_path / "model.safetensors")), str(tmp_path))
    with pytest.raises(RequestError, match=r"has no model\.safetensors"):
        verify_weights(spec(sha256="0" * 64), str(tmp_path.parent))
