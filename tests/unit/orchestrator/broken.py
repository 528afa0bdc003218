"""Recipes and clusters that are wrong in one way each, and what must be said about them.

Everything else about each request is sound. ``{folder}`` in a message is the folder of the files.
"""

# ruff: noqa: E501 (a message is as long as the line it is printed on)

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RECIPE = """\
name: small
corpus:
  sources: [{name: speech, language: en}]
encoder: {model: hubert, sha256: "HUBERT", layer: 2}
tokenizer: {num_clusters: 20}
model: {text_model: tiny-lm, sha256: "TEXT_LM"}
train: {context_length: 32, global_batch_tokens: 128, steps: 12, precision: fp32}
"""
RECIPE = RECIPE.replace("HUBERT", "a" * 64).replace("TEXT_LM", "b" * 64)

CLUSTER = """\
backend: local
store: store
data: {speech: speech}
models: {hubert: hubert, tiny-lm: tiny-lm}
"""

WEIGHTS = {"hubert": (b"of HuBERT", "a" * 64), "tiny-lm": (b"of a text LM", "b" * 64)}
"""Stand-ins for each model's weights, and what stands in the recipe for their digest."""
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "hubert": {
        "model_type": "hubert",
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    },
    "tiny-lm": {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
        "max_position_embeddings": 64,
        "vocab_size": 50,
    },
}
"""What the models say of themselves."""


@dataclass(frozen=True, kw_only=True)
class Broken:
    """One wrong request."""

    id: str
    says: tuple[str, ...]
    """Every line of stderr after the one that names the cluster."""
    recipe: str | bytes | None = RECIPE
    cluster: str | bytes | None = CLUSTER
    more: dict[str, str] = field(default_factory=dict)
    """Other files beside the recipe."""
    configs: Mapping[str, Mapping[str, Any] | str] = field(default_factory=dict)
    """Models with another ``config.json``."""
    overrides: tuple[str, ...] = ()
    names_cluster: bool = True
    """Whether the cluster was chosen before the problem was found."""

    def write(self, folder: Path) -> list[str]:
        """The files on disk, and the arguments that name them."""
        files = {"r.yaml": self.recipe, "c.yaml": self.cluster, **self.more}
        for name, content in files.items():
            if content is not None:
                data = content if isinstance(content, bytes) else with_digests(content).encode()
                (folder / name).write_bytes(data)
        (folder / "speech").mkdir(exist_ok=True)
        (folder / "speech" / "a.wav").touch()
        for model, config in {**CONFIGS, **self.configs}.items():
            (folder / model).mkdir(exist_ok=True)
            text = config if isinstance(config, str) else json.dumps(config)
            (folder / model / "config.json").write_text(text)
            (folder / model / "model.safetensors").write_bytes(WEIGHTS[model][0])
        words = [str(folder / "r.yaml"), "--cluster", str(folder / "c.yaml")]
        return [*words, *(w for o in self.overrides for w in ("--set", o))]


def with_digests(recipe: str) -> str:
    """The recipe with the digests of the stand-ins for weights."""
    for weights, digest in WEIGHTS.values():
        recipe = recipe.replace(digest, hashlib.sha256(weights).hexdigest())
    return recipe


SOUND = Broken(id="sound", says=())
"""The request that all others break."""


def edited(old: str, new: str, text: str = RECIPE) -> str:
    """The text with one thing changed; ``old`` must be there."""
    assert old in text
    return text.replace(old, new)


def added(lines: str, text: str = RECIPE) -> str:
    """The text with lines added at its end."""
    return f"{text}{lines}\n"


_LAUGHS = "\n".join(
    ["a0: &a0 [ha, ha]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 10))]
)
_PRETRAIN = "pretrain: {num_layers: 2, iterations: [{targets: mfcc, steps: 5}]}"
_HUBERT = f'model: hubert, sha256: "{"a" * 64}"'

RECIPES = (
    Broken(
        id="a tracker's key in plain sight",
        recipe=added("tracking: {wandb: {project: p, api_key: ffffffffff}}"),
        says=(
            "r.yaml: tracking.wandb.api_key: must not be written down here; write ${env:NAME} and export NAME where you submit",
        ),
    ),
    Broken(
        id="a tracker's password in its address",
        recipe=added(
            "tracking: {mlflow: {experiment: e, uri: 'https://me:s3cret@mlflow.example'}}"
        ),
        says=(
            "r.yaml: tracking.mlflow.uri: must not be written down here; write ${env:NAME} and export NAME where you submit",
        ),
    ),
    Broken(
        id="a tracker's token in part in plain sight",
        recipe=added("tracking: {mlflow: {experiment: e, token: 's3cret-${env:REST}'}}"),
        says=(
            "r.yaml: tracking.mlflow.token: must not be written down here; write ${env:NAME} and export NAME where you submit",
        ),
    ),
    Broken(
        id="a tracker's key by --set",
        recipe=added("tracking: {wandb: {project: p}}"),
        overrides=("tracking.wandb.api_key=s3cret",),
        says=(
            "r.yaml: tracking.wandb.api_key: must not be written down here; write ${env:NAME} and export NAME where you submit",
        ),
    ),
    Broken(
        id="a tracker without a project",
        recipe=added("tracking: {wandb: {mode: offline}, mlflow: {}}"),
        says=(
            "r.yaml: tracking.wandb.project: missing; give it a value",
            "r.yaml: tracking.mlflow.experiment: missing; give it a value",
        ),
    ),
    Broken(
        id="a tracker of another mode",
        recipe=added("tracking: {wandb: {project: p, mode: dryrun}}"),
        says=("r.yaml: tracking.wandb.mode: must be 'online' or 'offline', not 'dryrun'",),
    ),
    Broken(
        id="a tracker that is none",
        recipe=added("tracking: {comet: {project: p}}"),
        says=("r.yaml: tracking.comet: unknown key; known here: tensorboard, wandb, mlflow",),
    ),
    Broken(
        id="a count beyond counting",
        recipe=edited("steps: 12", f"steps: 1{'0' * 400}"),
        says=(f"r.yaml: train.steps: must be at most 9007199254740992, not 1{'0' * 56}...",),
    ),
    Broken(
        id="a sweep without end",
        recipe=added(f"sweep: {{seed: {list(range(40))}, train.steps: {list(range(1, 41))}}}"),
        says=("r.yaml: sweep: 1600 variants; keep it to 1000",),
    ),
    Broken(
        id="unknown key",
        recipe=edited("num_clusters", "num_cluster"),
        says=("r.yaml: tokenizer.num_cluster: unknown key; did you mean 'num_clusters'?",),
    ),
    Broken(
        id="unknown section",
        recipe=added("zzz: 1"),
        says=(
            "r.yaml: zzz: unknown key; known here: name, corpus, encoder, tokenizer, split, mixture, model, train, evaluate, tracking, sweep, seed",
        ),
    ),
    Broken(
        id="two problems",
        recipe=edited("num_clusters: 20", "num_cluster: 20, seed: x"),
        says=(
            "r.yaml: tokenizer.seed: must be a whole number, not 'x'",
            "r.yaml: tokenizer.num_cluster: unknown key; did you mean 'num_clusters'?",
        ),
    ),
    Broken(
        id="missing key",
        recipe=edited("steps: 12, ", ""),
        says=("r.yaml: train.steps: missing; give it a value",),
    ),
    Broken(
        id="missing section",
        recipe="name: small\n",
        says=(
            "r.yaml: corpus: missing; give it a value",
            "r.yaml: encoder: missing; give it a value",
            "r.yaml: model: missing; give it a value",
            "r.yaml: train: missing; give it a value",
        ),
    ),
    Broken(
        id="text for a number",
        recipe=edited("steps: 12", "steps: many"),
        says=("r.yaml: train.steps: must be a whole number, not 'many'",),
    ),
    Broken(
        id="fraction for a count",
        recipe=edited("steps: 12", "steps: 12.5"),
        says=("r.yaml: train.steps: must be a whole number, not 12.5",),
    ),
    Broken(
        id="list for a number",
        recipe=edited("steps: 12", "steps: [12]"),
        says=("r.yaml: train.steps: must be a whole number, not a list",),
    ),
    Broken(
        id="mapping for a number",
        recipe=edited("steps: 12", "steps: {a: 1}"),
        says=("r.yaml: train.steps: must be a whole number, not a section",),
    ),
    Broken(
        id="number for a section",
        recipe=edited("tokenizer: {num_clusters: 20}", "tokenizer: 20"),
        says=("r.yaml: tokenizer: must be a section, not 20",),
    ),
    Broken(
        id="text for a list",
        recipe=edited("sources: [{name: speech, language: en}]", "sources: speech"),
        says=("r.yaml: corpus.sources: must be a list, not 'speech'",),
    ),
    Broken(
        id="null for a section",
        recipe=edited("tokenizer: {num_clusters: 20}", "tokenizer:"),
        says=("r.yaml: tokenizer: must be a section, not null",),
    ),
    Broken(
        id="boolean for a number",
        recipe=edited("num_clusters: 20", "num_clusters: yes"),
        says=("r.yaml: tokenizer.num_clusters: must be a whole number, not true",),
    ),
    Broken(
        id="number for a boolean",
        recipe=edited("num_clusters: 20", "deduplicate: 3"),
        says=("r.yaml: tokenizer.deduplicate: must be true or false, not 3",),
    ),
    Broken(
        id="quoted number",
        recipe=edited("steps: 12", "steps: '12'"),
        says=("r.yaml: train.steps: must be a whole number, not '12'",),
    ),
    Broken(
        id="number for text",
        recipe=edited("name: small", "name: 5"),
        says=("r.yaml: name: must be text, not 5; quote it",),
    ),
    Broken(
        id="name with a slash",
        recipe=edited("name: small", "name: a/b"),
        says=("r.yaml: name: must be text like ^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$, not 'a/b'",),
    ),
    Broken(
        id="negative steps",
        recipe=edited("steps: 12", "steps: -1"),
        says=("r.yaml: train.steps: must be above 0, not -1",),
    ),
    Broken(
        id="no steps",
        recipe=edited("steps: 12", "steps: 0"),
        says=("r.yaml: train.steps: must be above 0, not 0",),
    ),
    Broken(
        id="nan lr",
        recipe=edited("steps: 12", "steps: 12, optimizer: {lr: .nan}"),
        says=("r.yaml: train.optimizer.lr: must be finite, not nan",),
    ),
    Broken(
        id="infinite lr",
        recipe=edited("steps: 12", "steps: 12, optimizer: {lr: .inf}"),
        says=("r.yaml: train.optimizer.lr: must be finite, not inf",),
    ),
    Broken(
        id="lr overflow",
        recipe=edited("steps: 12", "steps: 12, optimizer: {lr: 1e999}"),
        says=("r.yaml: train.optimizer.lr: must be finite, not inf",),
    ),
    Broken(
        id="nan weight decay",
        recipe=edited("steps: 12", "steps: 12, optimizer: {weight_decay: .nan}"),
        says=("r.yaml: train.optimizer.weight_decay: must be finite, not nan",),
    ),
    Broken(
        id="inf weight decay",
        recipe=edited("steps: 12", "steps: 12, optimizer: {weight_decay: .inf}"),
        says=("r.yaml: train.optimizer.weight_decay: must be finite, not inf",),
    ),
    Broken(
        id="nan fraction",
        recipe=edited("sources:", "data_fraction: .nan\n  sources:"),
        says=("r.yaml: corpus.data_fraction: must be finite, not nan",),
    ),
    Broken(
        id="beta one",
        recipe=edited("steps: 12", "steps: 12, optimizer: {betas: [0.9, 1.0]}"),
        says=("r.yaml: train.optimizer.betas.1: must be below 1, not 1.0",),
    ),
    Broken(
        id="one beta",
        recipe=edited("steps: 12", "steps: 12, optimizer: {betas: [0.9]}"),
        says=("r.yaml: train.optimizer.betas.1: missing; give it a value",),
    ),
    Broken(
        id="unknown schedule",
        recipe=edited("steps: 12", "steps: 12, schedule: {kind: linear}"),
        says=(
            "r.yaml: train.schedule.kind: must be 'inverse_sqrt', 'cosine' or 'constant', not 'linear'",
        ),
    ),
    Broken(
        id="batch no multiple",
        recipe=edited("tokens: 128", "tokens: 100"),
        says=(
            "r.yaml: train: global_batch_tokens (100) must be a multiple of context_length (32)",
        ),
    ),
    Broken(
        id="keep one checkpoint",
        recipe=edited("steps: 12", "steps: 12, checkpoint: {keep_last: 1}"),
        says=("r.yaml: train.checkpoint.keep_last: must be at least 2, not 1",),
    ),
    Broken(
        id="zero stage 4",
        recipe=edited("steps: 12", "steps: 12, execution: {micro_batch: 1, zero_stage: 4}"),
        says=("r.yaml: train.execution.zero_stage: must be 0, 1, 2 or 3, not 4",),
    ),
    Broken(
        id="too many units",
        recipe=edited("clusters: 20", "clusters: 70000"),
        says=("r.yaml: tokenizer.num_clusters: must be at most 65535, not 70000",),
    ),
    Broken(
        id="no sources",
        recipe=edited("[{name: speech, language: en}]", "[]"),
        says=("r.yaml: corpus.sources: must be a list of at least 1, not an empty list",),
    ),
    Broken(
        id="bad source",
        recipe=edited("language: en}]", "language: english}]"),
        says=(
            "r.yaml: corpus.sources.0.language: must be text like ^[a-z]{2,3}$ or 'from_folder', not 'english'",
        ),
    ),
    Broken(
        id="source twice",
        recipe=edited("language: en}]", "language: en}, {name: speech, language: en}]"),
        says=("r.yaml: corpus: sources: 'speech' is given twice; give each its own name",),
    ),
    Broken(
        id="unknown adapter",
        recipe=edited("language: en}]", "adapter: libri}]"),
        says=(
            "r.yaml: corpus.sources.0.adapter: must be 'folder', 'librispeech', 'libri_light', "
            "'mls', 'spotify', 'voxpopuli', 'peoples_speech', 'gigaspeech', 'fairseq_tsv', "
            "'kaldi', 'webdataset', 'manifest', 'hf_parquet' or 'lhotse', not 'libri'",
        ),
    ),
    Broken(
        id="a snapshot without a label",
        recipe=edited("sources:", "snapshot: ''\n  sources:"),
        says=("r.yaml: corpus.snapshot: must not be empty",),
    ),
    Broken(
        id="windows of no sample",
        recipe=edited("sources:", "windows: {min_s: 1e-9, max_s: 1e-6}\n  sources:"),
        says=("r.yaml: corpus.windows.max_s: must be at least 0.1, not 1e-06",),
    ),
    Broken(
        id="windows that no encoder holds",
        recipe=edited("sources:", "windows: {max_s: 1e20}\n  sources:"),
        says=("r.yaml: corpus.windows.max_s: must be at most 3600, not 1e+20",),
    ),
    Broken(
        id="a band without speech",
        recipe=edited("language: en", "language: en, lowpass_hz: 0.5"),
        says=("r.yaml: corpus.sources.0.lowpass_hz: must be at least 100, not 0.5",),
    ),
    Broken(
        id="language identification by a model without a name, in all of a recording",
        recipe=edited(
            "sources:",
            f"filter: {{language_id: {{model: '', sha256: {'a' * 64}, windows: 101}}}}\n  sources:",
        ),
        says=(
            "r.yaml: corpus.filter.language_id.model: must not be empty",
            "r.yaml: corpus.filter.language_id.windows: must be at most 100, not 101",
        ),
    ),
    Broken(
        id="no languages",
        recipe=edited("sources:", "languages: []\n  sources:"),
        says=("r.yaml: corpus.languages: must be a list of at least 1, not an empty list",),
    ),
    Broken(
        id="speech that ends before it begins",
        recipe=edited("sources:", "filter: {voice_activity: {threshold: 0.3}}\n  sources:"),
        says=(
            "r.yaml: corpus.filter.voice_activity: release (0.35) must be at most threshold (0.3)",
        ),
    ),
    Broken(
        id="a filter by language without its model's digest",
        recipe=edited("sources:", "filter: {language_id: {model: whisper}}\n  sources:"),
        says=("r.yaml: corpus.filter.language_id.sha256: missing; give it a value",),
    ),
    Broken(
        id="channels that nobody knows",
        recipe=edited("language: en", "language: en, channels: left"),
        says=(
            "r.yaml: corpus.sources.0.channels: must be 'mix', 'loudest', 'first' or 'each', not 'left'",
        ),
    ),
    Broken(
        id="windows reversed",
        recipe=edited("sources:", "windows: {min_s: 9, max_s: 3}\n  sources:"),
        says=("r.yaml: corpus.windows: min_s (9.0) must be below max_s (3.0)",),
    ),
    Broken(
        id="splits use all",
        recipe=added("split: {valid: 0.6}"),
        says=("r.yaml: split.valid: must be below 0.5, not 0.6",),
    ),
    Broken(
        id="model and pretrain",
        recipe=edited("layer: 2", f"{_PRETRAIN}, layer: 2"),
        says=("r.yaml: encoder: give exactly one of model and pretrain",),
    ),
    Broken(
        id="neither model nor pretrain",
        recipe=edited(_HUBERT + ", ", ""),
        says=("r.yaml: encoder: give exactly one of model and pretrain",),
    ),
    Broken(
        id="layer beyond pretrain",
        recipe=edited(f"{_HUBERT}, layer: 2", f"{_PRETRAIN}, layer: 3"),
        says=("r.yaml: encoder: layer must be 1..2, the layers of pretrain",),
    ),
    Broken(
        id="first targets a layer",
        recipe=edited(
            f"{_HUBERT}", "pretrain: {num_layers: 2, iterations: [{targets: 1, steps: 5}]}"
        ),
        says=(
            "r.yaml: encoder.pretrain: iterations[0].targets must be mfcc: there is no earlier model to take a layer of",
        ),
    ),
    Broken(
        id="targets nonsense",
        recipe=edited(
            f"{_HUBERT}", "pretrain: {num_layers: 2, iterations: [{targets: fbank, steps: 5}]}"
        ),
        says=(
            "r.yaml: encoder.pretrain.iterations.0.targets: must be 'mfcc' or a whole number, not 'fbank'",
        ),
    ),
    Broken(
        id="target layer beyond",
        recipe=edited(
            f"{_HUBERT}",
            "pretrain: {num_layers: 2, iterations: [{targets: mfcc, steps: 5}, {targets: 9, steps: 5}]}",
        ),
        says=("r.yaml: encoder.pretrain: iterations: targets must be a layer of 1..2",),
    ),
    Broken(
        id="no iterations",
        recipe=edited(f"{_HUBERT}", "pretrain: {iterations: []}"),
        says=(
            "r.yaml: encoder.pretrain.iterations: must be a list of at least 1, not an empty list",
        ),
    ),
    Broken(
        id="unequal convs",
        recipe=edited(
            f"{_HUBERT}", "pretrain: {conv_dim: [8], iterations: [{targets: mfcc, steps: 5}]}"
        ),
        says=(
            "r.yaml: encoder.pretrain: conv_dim, conv_kernel and conv_stride must have the same length",
        ),
    ),
    Broken(
        id="crops below one frame",
        recipe=edited(
            f"{_HUBERT}", "pretrain: {crop_s: 0.02, iterations: [{targets: mfcc, steps: 5}]}"
        ),
        says=(
            "r.yaml: encoder.pretrain: crop_s (0.02) must hold the receptive field of the convolutions: "
            "825 samples, 0.0515625 s",
        ),
    ),
    Broken(
        id="heads do not divide",
        recipe=edited(
            f"{_HUBERT}",
            "pretrain: {num_layers: 2, hidden_size: 50, iterations: [{targets: mfcc, steps: 5}]}",
        ),
        says=("r.yaml: encoder.pretrain: hidden_size (50) must divide by num_heads (4)",),
    ),
    Broken(
        id="unpinned encoder",
        recipe=edited(_HUBERT, "model: hubert"),
        says=(
            "r.yaml: encoder: model needs revision (a Hugging Face commit) or sha256 (of model.safetensors)",
        ),
    ),
    Broken(
        id="unpinned text model",
        recipe=edited(f', sha256: "{"b" * 64}"', ""),
        says=(
            "r.yaml: model: text_model needs revision (a Hugging Face commit) or sha256 (of its weights file)",
        ),
    ),
    Broken(
        id="unpinned codebook",
        overrides=("tokenizer.codebook={model: km, file: km.npy}",),
        says=(
            "r.yaml: tokenizer.codebook: codebook needs revision (a Hugging Face commit) or sha256 (of its file)",
        ),
    ),
    Broken(
        id="codebook outside of its folder",
        overrides=(f"tokenizer.codebook={{model: km, file: a/../../b, sha256: {'b' * 64}}}",),
        says=("r.yaml: tokenizer.codebook: file must be a path below model, without ..",),
    ),
    Broken(
        id="codebook that is fitted",
        overrides=(
            f"tokenizer={{fit_hours: 3, codebook: {{model: km, file: a, sha256: {'b' * 64}}}}}",
        ),
        says=(
            "r.yaml: tokenizer: fit_hours: nothing is fitted where a codebook is given; leave it out",
        ),
    ),
    Broken(
        id="codebook of no model",
        overrides=(f"tokenizer.codebook={{model: km, file: a, sha256: {'b' * 64}}}",),
        says=("c.yaml: models.km: missing; map it to a folder in Hugging Face format",),
    ),
    Broken(
        id="short digest",
        recipe=edited("b" * 64, "b" * 63),
        says=(
            "r.yaml: model.sha256: must be text like ^[0-9a-f]{64}$, not 'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb...",
        ),
    ),
    Broken(
        id="empty sweep list",
        recipe=added("sweep: {train.steps: []}"),
        says=("r.yaml: sweep.train.steps: must be a list of at least 1, not an empty list",),
    ),
    Broken(
        id="sweep no list",
        recipe=added("sweep: {train.steps: 5}"),
        says=("r.yaml: sweep.train.steps: must be a list, not 5",),
    ),
    Broken(
        id="sweep of a list",
        recipe=added("sweep: [train.steps]"),
        says=("r.yaml: sweep: must be a section, not a list",),
    ),
    Broken(
        id="sweep of lists",
        recipe=added("sweep: {corpus.languages: [[en], [fr]]}"),
        says=(
            "r.yaml: sweep.corpus.languages.0: must be text or a whole number or a number or true or false, not a list",
            "r.yaml: sweep.corpus.languages.1: must be text or a whole number or a number or true or false, not a list",
        ),
    ),
    Broken(
        id="sweep unknown key",
        recipe=added("sweep: {train.step: [1, 2]}"),
        says=("r.yaml: sweep step=1: train.step: unknown key; did you mean 'steps'?",),
    ),
    Broken(
        id="sweep unknown section",
        recipe=added("sweep: {trains.steps: [1, 2]}"),
        says=("r.yaml: sweep steps=1: trains: unknown key; did you mean 'train'?",),
    ),
    Broken(
        id="sweep wrong type",
        recipe=added("sweep: {train.steps: [5, many]}"),
        says=("r.yaml: sweep steps=many: train.steps: must be a whole number, not 'many'",),
    ),
    Broken(
        id="sweep through a leaf",
        recipe=added("sweep: {train.steps.x: [5]}"),
        says=("r.yaml: sweep.train.steps.x: 'steps' is not a section; set it as a whole",),
    ),
    Broken(
        id="sweep of the sweep",
        recipe=added("sweep: {sweep.train.steps: [5]}"),
        says=("r.yaml: sweep steps=5: sweep.train.steps: must be a list, not 5",),
    ),
    Broken(
        id="sweep same value twice",
        recipe=added("sweep: {train.steps: [5, 5]}"),
        says=("r.yaml: sweep.train.steps: 5 is given twice; keep one",),
    ),
    Broken(
        id="sweep into a list",
        recipe=added("sweep: {corpus.sources.0.language: [en, fr]}"),
        says=(
            "r.yaml: sweep.corpus.sources.0.language: 'sources' is not a section; set it as a whole",
        ),
    ),
    Broken(
        id="a point of nothing",
        recipe=added("sweep: {tokenizer: {fine: {}}}"),
        says=("r.yaml: sweep.tokenizer.fine: sets nothing; give it dotted keys, or leave it out",),
    ),
    Broken(
        id="a point with an unknown key",
        recipe=added("sweep: {tokenizer: {fine: {tokenizer.num_cluster: 40}}, seed: [1, 2]}"),
        says=(
            "r.yaml: sweep fine,seed=1: tokenizer.num_cluster: unknown key; did you mean 'num_clusters'?",
        ),
    ),
    Broken(
        id="a key of two axes",
        recipe=added("sweep: {a: {x: {seed: 1}}, seed: [1, 2]}"),
        says=("r.yaml: sweep: seed is set by a and by seed; leave it to one of them",),
    ),
    Broken(
        id="a cold start with the text model's embeddings",
        recipe=edited("model: {", "model: {init: cold, embedding_init: text_mean, "),
        says=(
            "r.yaml: model: embedding_init: text_mean begins with the text model's embeddings, and a cold start with none of its weights; leave it out, or set init: twist",
        ),
    ),
    Broken(
        id="mixture of an unknown source",
        recipe=added("mixture: {speach: 1}"),
        says=("r.yaml: mixture: 'speach' is no source; they are speech",),
    ),
    Broken(
        id="mixture of some sources",
        recipe=edited(
            "{name: speech, language: en}",
            "{name: speech}, {name: talks}",
            added("mixture: {talks: 2}"),
        ),
        says=("r.yaml: mixture: speech has no weight; give every source one",),
    ),
    Broken(
        id="mixture without a weight",
        recipe=added("mixture: {speech: 0}"),
        says=("r.yaml: mixture.speech: must be above 0, not 0",),
    ),
    Broken(
        id="mixture of words",
        recipe=added("mixture: {speech: much}"),
        says=("r.yaml: mixture.speech: must be a number, not 'much'",),
    ),
    Broken(
        id="mixture list",
        recipe=added("mixture: [speech]"),
        says=("r.yaml: mixture: must be a section, not a list",),
    ),
    Broken(
        id="split by what is no group",
        recipe=added("split: {by: chapter}"),
        says=("r.yaml: split.by: must be 'session', 'speaker' or 'recording', not 'chapter'",),
    ),
    Broken(
        id="execution without micro batch",
        recipe=edited("steps: 12", "steps: 12, execution: {zero_stage: 1}"),
        says=("r.yaml: train.execution.micro_batch: missing; give it a value",),
    ),
)
SYNTAX = (
    Broken(id="empty file", recipe="", says=("r.yaml: must be a mapping of sections, not empty",)),
    Broken(
        id="only comments",
        recipe="# nothing\n",
        says=("r.yaml: must be a mapping of sections, not empty",),
    ),
    Broken(
        id="list at top",
        recipe="- a\n- b\n",
        says=("r.yaml: must be a mapping of sections, not a list",),
    ),
    Broken(
        id="text at top",
        recipe="hello\n",
        says=("r.yaml: must be a mapping of sections, not 'hello'",),
    ),
    Broken(
        id="number at top",
        recipe="12\n",
        says=("r.yaml: must be a mapping of sections, not 12",),
    ),
    Broken(
        id="boolean at top",
        recipe="true\n",
        says=("r.yaml: must be a mapping of sections, not true",),
    ),
    Broken(
        id="two documents",
        recipe=RECIPE + "---\n" + RECIPE,
        says=("r.yaml:8:1: expected a single document in the stream, but found another document",),
    ),
    Broken(
        id="tabs",
        recipe="name: small\ncorpus:\n\tsources: []\n",
        says=("r.yaml:3:1: found character '\\t' that cannot start any token",),
    ),
    Broken(
        id="unclosed",
        recipe="name: [small\n",
        says=("r.yaml:2:1: expected ',' or ']', but got '<stream end>'",),
    ),
    Broken(
        id="unclosed quote",
        recipe="name: 'small\n",
        says=("r.yaml:2:1: found unexpected end of stream",),
    ),
    Broken(
        id="binary",
        recipe=b"\x00\x01\x02\xff\xfe",
        says=("r.yaml: not UTF-8 text; save it as UTF-8",),
    ),
    Broken(
        id="NUL",
        recipe=b"name: a\x00b\n",
        says=(
            "r.yaml: not valid YAML (unacceptable character #x0000: special characters are not allowed)",
        ),
    ),
    Broken(
        id="latin-1",
        recipe="name: caf\xe9\n".encode("latin-1"),
        says=("r.yaml: not UTF-8 text; save it as UTF-8",),
    ),
    Broken(
        id="utf-16",
        recipe=RECIPE.encode("utf-16"),
        says=("r.yaml: not UTF-8 text; save it as UTF-8",),
    ),
    Broken(
        id="bom",
        recipe=b"\xef\xbb\xbf" + RECIPE.encode() + b"zzz: 1\n",
        says=(
            "r.yaml: zzz: unknown key; known here: name, corpus, encoder, tokenizer, split, mixture, model, train, evaluate, tracking, sweep, seed",
        ),
    ),
    Broken(
        id="too large",
        recipe=RECIPE + "#" * 1_000_001,
        says=("r.yaml: larger than 1000000 bytes; this is no recipe",),
    ),
    Broken(
        id="deep", recipe="a: " + "[" * 1000, says=("r.yaml: nested too deeply; this is no recipe",)
    ),
    Broken(
        id="billion laughs",
        recipe=_LAUGHS,
        says=("r.yaml:2:10: aliases are not allowed; write the value out",),
    ),
    Broken(
        id="alias",
        recipe=RECIPE + "a: &a 1\nb: *a\n",
        says=("r.yaml:9:4: aliases are not allowed; write the value out",),
    ),
    Broken(
        id="merge",
        recipe=RECIPE + "<<: {a: 1}\n",
        says=("r.yaml:8:1: tag 'tag:yaml.org,2002:merge' is not allowed; write the value plainly",),
    ),
    Broken(
        id="python apply",
        recipe=RECIPE + "a: !!python/object/apply:os.system ['touch pwned']\n",
        says=(
            "r.yaml:8:4: tag 'tag:yaml.org,2002:python/object/apply:os.system' is not allowed; write the value plainly",
        ),
    ),
    Broken(
        id="python name",
        recipe=RECIPE + "a: !!python/name:os.system\n",
        says=(
            "r.yaml:8:4: tag 'tag:yaml.org,2002:python/name:os.system' is not allowed; write the value plainly",
        ),
    ),
    Broken(
        id="own tag",
        recipe=RECIPE + "a: !env HOME\n",
        says=("r.yaml:8:4: tag '!env' is not allowed; write the value plainly",),
    ),
    Broken(
        id="duplicate key",
        recipe=RECIPE + "name: other\n",
        says=("r.yaml:8:1: key 'name' is given twice; keep one",),
    ),
    Broken(
        id="nested duplicate key",
        recipe=edited("steps: 12", "steps: 12, steps: 13"),
        says=("r.yaml:7:66: key 'steps' is given twice; keep one",),
    ),
    Broken(
        id="number key", recipe=RECIPE + "5: 6\n", says=("r.yaml:8:1: key 5 is not text; quote it",)
    ),
    Broken(
        id="boolean key",
        recipe=RECIPE + "on: 6\n",
        says=("r.yaml:8:1: key on is not text; quote it",),
    ),
    Broken(
        id="null key",
        recipe=RECIPE + "~: 6\n",
        says=("r.yaml:8:1: key ~ is not text; quote it",),
    ),
    Broken(
        id="list key",
        recipe=RECIPE + "? [a, b]\n: 6\n",
        says=("r.yaml:8:3: key ['a', 'b'] is not text; quote it",),
    ),
    Broken(
        id="mapping key",
        recipe=RECIPE + "? {a: b}\n: 6\n",
        says=("r.yaml:8:3: key {'a': 'b'} is not text; quote it",),
    ),
    Broken(
        id="set",
        recipe=edited("tokenizer: {num_clusters: 20}", "tokenizer: !!set {a, b}"),
        says=("r.yaml: tokenizer: must be a section, not a list",),
    ),
    Broken(
        id="omap",
        recipe=edited("tokenizer: {num_clusters: 20}", "tokenizer: !!omap [a: 1]"),
        says=("r.yaml: tokenizer: must be a section, not a list",),
    ),
    Broken(
        id="date",
        recipe=edited("name: small", "name: 2020-01-01"),
        says=("r.yaml: name: must be text, not 2020-01-01; quote it",),
    ),
    Broken(
        id="bad date",
        recipe=edited("name: small", "name: 2020-13-41"),
        says=("r.yaml: not valid YAML (month must be in 1..12)",),
    ),
    Broken(
        id="bad int tag",
        recipe=edited("steps: 12", "steps: !!int many"),
        says=("r.yaml: not valid YAML (invalid literal for int() with base 10: 'many')",),
    ),
    Broken(
        id="missing file",
        recipe=None,
        names_cluster=False,
        says=("{folder}/r.yaml: no such recipe; check the path",),
    ),
    Broken(
        id="missing parent",
        recipe="extends: nope.yaml\n" + RECIPE,
        says=("r.yaml: extends: 'nope.yaml' is not a file; check the path",),
    ),
    Broken(
        id="parent is folder",
        recipe="extends: .\n" + RECIPE,
        says=("r.yaml: extends: '.' is not a file; check the path",),
    ),
    Broken(
        id="extends list",
        recipe="extends: [a.yaml]\n" + RECIPE,
        says=("r.yaml: extends: ['a.yaml'] is not a file name; give one path",),
    ),
    Broken(
        id="extends itself",
        recipe="extends: r.yaml\n" + RECIPE,
        says=("r.yaml: extends: r.yaml -> r.yaml is a cycle; remove one of them",),
    ),
    Broken(
        id="extends cycle",
        recipe="extends: s.yaml\n" + RECIPE,
        more={"s.yaml": "extends: r.yaml\n"},
        says=("r.yaml: extends: r.yaml -> s.yaml -> r.yaml is a cycle; remove one of them",),
    ),
    Broken(
        id="problem in parent",
        recipe="extends: s.yaml\n" + RECIPE,
        more={"s.yaml": "a: [\n"},
        says=("s.yaml:2:1: expected the node content, but found '<stream end>'",),
    ),
    Broken(
        id="unknown key in parent",
        recipe="extends: s.yaml\n" + RECIPE,
        more={"s.yaml": "zzz: 1\n"},
        says=(
            "r.yaml: zzz: unknown key; known here: name, corpus, encoder, tokenizer, split, mixture, model, train, evaluate, tracking, sweep, seed",
        ),
    ),
    Broken(
        id="extends null",
        recipe="extends:\n" + RECIPE + "zzz: 1\n",
        says=(
            "r.yaml: zzz: unknown key; known here: name, corpus, encoder, tokenizer, split, mixture, model, train, evaluate, tracking, sweep, seed",
        ),
    ),
)
SETS = (
    Broken(
        id="set no value",
        overrides=("train.steps",),
        says=("--set train.steps: not of the form key=value; write --set train.steps=100",),
    ),
    Broken(
        id="set no key",
        overrides=("=5",),
        says=("--set =5: not of the form key=value; write --set train.steps=100",),
    ),
    Broken(
        id="set unknown",
        overrides=("train.step=5",),
        says=("r.yaml: train.step: unknown key; did you mean 'steps'?",),
    ),
    *(
        Broken(
            id=f"set a key called {key}",
            overrides=(f"tokenizer.{key}=5",),
            says=(
                f"r.yaml: tokenizer.{key}: unknown key; known here: codebook, num_clusters, "
                "fit_hours, deduplicate, seed",
            ),
        )
        for key in ("int", "bool", "none")
    ),
    Broken(
        id="set unknown section",
        overrides=("trian.steps=5",),
        says=("r.yaml: trian: unknown key; did you mean 'train'?",),
    ),
    Broken(
        id="set wrong type",
        overrides=("train.steps=many",),
        says=("r.yaml: train.steps: must be a whole number, not 'many'",),
    ),
    Broken(
        id="set through leaf",
        overrides=("train.steps.x=5",),
        says=("--set train.steps.x: 'steps' is not a section; set it as a whole",),
    ),
    Broken(
        id="set bad yaml",
        overrides=("train.steps=[",),
        says=("--set train.steps=[: expected the node content, but found '<stream end>'",),
    ),
    Broken(
        id="set python tag",
        overrides=("train.steps=!!python/name:os.system",),
        says=(
            "--set train.steps=!!python/name:os.system: tag 'tag:yaml.org,2002:python/name:os.system' is not allowed; write the value plainly",
        ),
    ),
    Broken(
        id="set dots",
        overrides=("train..steps=5",),
        says=("--set train..steps=5: not of the form key=value; write --set train.steps=100",),
    ),
    Broken(
        id="set empty",
        overrides=("train.steps=",),
        says=("r.yaml: train.steps: must be a whole number, not null",),
    ),
    Broken(
        id="set sweep empty",
        overrides=("sweep.train.steps=[]",),
        says=("r.yaml: sweep.train.steps: must be a list of at least 1, not an empty list",),
    ),
    Broken(
        id="set sweep scalar",
        overrides=("sweep.train.steps=5",),
        says=("r.yaml: sweep.train.steps: must be a list, not 5",),
    ),
    Broken(
        id="set sweep null",
        overrides=("sweep=",),
        says=("r.yaml: sweep: must be a section, not null",),
    ),
    Broken(
        id="set nan",
        overrides=("train.optimizer.lr=.nan",),
        says=("r.yaml: train.optimizer.lr: must be finite, not nan",),
    ),
    Broken(
        id="set duplicate key",
        overrides=("train={steps: 1, steps: 2}",),
        says=("--set train={steps: 1, steps: 2}: key 'steps' is given twice; keep one",),
    ),
    Broken(
        id="set extends",
        overrides=("extends=x.yaml",),
        says=(
            "r.yaml: extends: unknown key; known here: name, corpus, encoder, tokenizer, split, mixture, model, train, evaluate, tracking, sweep, seed",
        ),
    ),
)
OLD_FORMS = (
    Broken(
        id="a key of evaluate as before",
        overrides=("evaluate.temperature=0.5",),
        says=(
            "--set evaluate.temperature: each score has a section of its own; write evaluate.continuations.temperature",
        ),
    ),
    Broken(
        id="a key of evaluate that two scores have now",
        overrides=("evaluate.seed=1",),
        says=(
            "--set evaluate.seed: each score has a section of its own; write evaluate.perplexity.seed and evaluate.continuations.seed",
        ),
    ),
    Broken(
        id="a sweep over a key of evaluate as before",
        recipe=added("sweep: {evaluate.continuations: [4, 8]}"),
        says=(
            "r.yaml: sweep.evaluate.continuations: each score has a section of its own; write evaluate.continuations.num_prompts",
        ),
    ),
)
SLIPS = (
    Broken(
        id="a count as a float beyond counting",
        overrides=("train.steps=1e30",),
        says=("r.yaml: train.steps: must be at most 9007199254740992, not 1e+30",),
    ),
    Broken(
        id="a count with a leading zero",
        overrides=("train.steps=010",),
        says=("r.yaml: train.steps: must be a whole number, not '010'",),
    ),
    Broken(
        id="a date for text",
        overrides=("corpus.snapshot=2026-01-01",),
        says=("r.yaml: corpus.snapshot: must be text, not 2026-01-01; quote it",),
    ),
    Broken(
        id="Norwegian",
        overrides=("corpus.languages=[no]",),
        says=("r.yaml: corpus.languages.0: must be text, not false; quote it",),
    ),
    Broken(
        id="three betas",
        overrides=("train.optimizer.betas=[0.9, 0.98, 1]",),
        says=("r.yaml: train.optimizer.betas: 3 values; keep 2",),
    ),
    Broken(
        id="sweep of one value with two names",
        overrides=("sweep.seed=[1, 1.0]",),
        says=("r.yaml: sweep.seed: 1 is given twice; keep one",),
    ),
    Broken(
        id="sweep of two values with one name",
        overrides=("sweep.corpus.snapshot=['1', 1]",),
        says=("r.yaml: sweep.corpus.snapshot: 1 is given twice; keep one",),
    ),
    Broken(
        id="a fraction for an option",
        cluster=added("slurm: {extra: {mail-type: 1.5}}", CLUSTER),
        says=("c.yaml: slurm.extra.mail-type: must be true or text or a whole number, not 1.5",),
    ),
    Broken(
        id="a reference to no variable",
        cluster=added("scratch: '${env:}/x'", CLUSTER),
        says=(
            "c.yaml: scratch: '${env:}/x': a shell's variables mean nothing here; write ${env:NAME}",
        ),
    ),
)
_COMMIT = "write a commit, 40 hex digits, as the list of commits on the model's page has them"
_LM_DIGEST = f'sha256: "{"b" * 64}"'
MOVING = (
    Broken(
        id="a branch for a commit",
        recipe=edited(_LM_DIGEST, "revision: main"),
        says=(f"r.yaml: model.revision: 'main' can move; {_COMMIT}",),
    ),
    Broken(
        id="a tag beside a digest",
        recipe=edited(_HUBERT, f"{_HUBERT}, revision: v1.0"),
        says=(f"r.yaml: encoder.revision: 'v1.0' can move; {_COMMIT}",),
    ),
    Broken(
        id="the beginning of a commit",
        overrides=("model.revision=a319086",),
        says=(f"r.yaml: model.revision: 'a319086' can move; {_COMMIT}",),
    ),
    Broken(
        id="branches of both models",
        overrides=("model.revision=main", "encoder.revision=refs/pr/1"),
        says=(
            f"r.yaml: encoder.revision: 'refs/pr/1' can move; {_COMMIT}",
            f"r.yaml: model.revision: 'main' can move; {_COMMIT}",
        ),
    ),
    Broken(
        id="a branch of one variant",
        recipe=added(f"sweep: {{model.revision: [{'0' * 39}a, main]}}"),
        says=(f"r.yaml: model.revision: 'main' can move; {_COMMIT}",),
    ),
)


def _with(model: str, **over: Any) -> dict[str, Mapping[str, Any]]:
    """The model with some of its config changed."""
    return {model: {**CONFIGS[model], **over}}


_NO_LM = "name a causal LM, such as facebook/opt-350m"
UNFIT = (
    Broken(
        id="a hub's model without a commit",
        overrides=("model.text_model=facebook/opt-350m",),
        says=(
            "r.yaml: model.revision: missing, and facebook/opt-350m comes from the hub, where it can move; "
            f"{_COMMIT}",
        ),
    ),
    Broken(
        id="more context than positions",
        overrides=("train.context_length=128",),
        says=(
            "r.yaml: train.context_length: 128 tokens, but tiny-lm has 64 positions; give at most 64, or a text model of longer context",
        ),
    ),
    Broken(
        id="more context than a rotary model was trained on",
        overrides=("train.context_length=128",),
        configs=_with("tiny-lm", model_type="llama", architectures=["LlamaForCausalLM"]),
        says=(
            "r.yaml: train.context_length: 128 tokens, but tiny-lm was trained on 64 positions; give at most 64, or a text model of longer context",
        ),
    ),
    Broken(
        id="a text model that is an encoder",
        configs=_with("tiny-lm", model_type="bert", architectures=["BertForMaskedLM"]),
        says=(
            f"r.yaml: model.text_model: tiny-lm sees what comes after each token (BertForMaskedLM without is_decoder); {_NO_LM}",
        ),
    ),
    *(
        Broken(
            id=f"a text model that sees both ways, {family}",
            configs=_with("tiny-lm", model_type=family, architectures=[name]),
            says=(
                f"r.yaml: model.text_model: tiny-lm sees what comes after each token ({name} without is_decoder); {_NO_LM}",
            ),
        )
        for family, name in (
            ("xlnet", "XLNetLMHeadModel"),
            ("xlm", "XLMWithLMHeadModel"),
            ("reformer", "ReformerModelWithLMHead"),
        )
    ),
    Broken(
        id="a text model with an encoder",
        configs=_with(
            "tiny-lm",
            model_type="t5",
            architectures=["T5ForConditionalGeneration"],
            is_encoder_decoder=True,
        ),
        says=(
            f"r.yaml: model.text_model: tiny-lm is an encoder and a decoder (T5ForConditionalGeneration); {_NO_LM}",
        ),
    ),
    Broken(
        id="the two models swapped",
        cluster=edited(
            "hubert: hubert, tiny-lm: tiny-lm", "hubert: tiny-lm, tiny-lm: hubert", CLUSTER
        ),
        says=(
            "r.yaml: encoder.model: hubert is of model_type 'opt', none of hubert, wav2vec2, wavlm; name an encoder of these families",
            f"r.yaml: model.text_model: tiny-lm is no causal LM (hubert); {_NO_LM}",
        ),
    ),
    Broken(
        id="heads that do not share the width",
        configs=_with("tiny-lm", num_attention_heads=3),
        says=(
            "r.yaml: model.text_model: tiny-lm: 3 heads cannot share its width of 16; mend its config.json",
        ),
    ),
    Broken(
        id="a text model without a vocabulary",
        configs=_with("tiny-lm", vocab_size=0),
        says=(
            "r.yaml: model.text_model: tiny-lm: vocab_size of its config.json is 0, not a whole number above 0; mend the file",
        ),
    ),
    Broken(
        id="a quantised text model",
        configs=_with("tiny-lm", quantization_config={"quant_method": "awq"}),
        says=(
            "r.yaml: model.text_model: tiny-lm is quantised (awq), which cannot be trained; name the model that it was made from",
        ),
    ),
    Broken(
        id="more layers than the text model has",
        overrides=("model.num_layers=3",),
        says=("r.yaml: model.num_layers: tiny-lm has 2 layers, not 3; give 1..2",),
    ),
    Broken(
        id="offload without ZeRO",
        overrides=("train.execution={micro_batch: 1, offload: true}",),
        says=(
            "c.yaml: resources.train: 1 ranks: train.execution.offload: without ZeRO nothing is moved to the host; give zero_stage 1 or more, or leave offload out",
        ),
    ),
    Broken(
        id="flash attention in fp32",
        overrides=("train.execution={micro_batch: 1, attention: flash_attention_2}",),
        says=(
            "c.yaml: resources.train.gpus_per_node: 0, but train.execution.attention is flash_attention_2, which needs accelerators; use a cluster with GPUs, or sdpa",
            "this Python: flash_attn not installed, which train.execution.attention asks for; pip install flash-attn, or give sdpa",
            "r.yaml: train.execution.attention: flash_attention_2 computes in 16 bits, not in fp32; give sdpa, or train.precision bf16",
        ),
    ),
    Broken(
        id="a config that is no JSON",
        configs={"tiny-lm": "{"},
        says=(
            "c.yaml: models.tiny-lm: {folder}/tiny-lm/config.json is no JSON; fetch the model again",
        ),
    ),
    Broken(
        id="a config that is no object",
        configs={"hubert": "[]"},
        says=(
            "c.yaml: models.hubert: {folder}/hubert/config.json is no JSON object; fetch the model again",
        ),
    ),
    Broken(
        id="an encoder of another family",
        configs=_with("hubert", model_type="data2vec-audio"),
        says=(
            "r.yaml: encoder.model: hubert is of model_type 'data2vec-audio', none of hubert, wav2vec2, wavlm; name an encoder of these families",
        ),
    ),
    Broken(
        id="a layer beyond the encoder",
        overrides=("encoder.layer=3",),
        says=("r.yaml: encoder.layer: is 3, but the model has 2 layers; give 1..2",),
    ),
    Broken(
        id="another frame rate than the encoder's",
        overrides=("encoder.frame_rate_hz=25",),
        says=("r.yaml: encoder.frame_rate_hz: is 25, but the model's strides give 50; say 50",),
    ),
    Broken(
        id="another frame rate than that of the encoder to come",
        recipe=edited(f"{_HUBERT}, layer: 2", f"{_PRETRAIN}, layer: 2, frame_rate_hz: 25"),
        says=("r.yaml: encoder.frame_rate_hz: is 25, but the model's strides give 50; say 50",),
    ),
    Broken(
        id="strides of another frame rate",
        recipe=edited(
            f"{_HUBERT}, layer: 2",
            "pretrain: {num_layers: 2, conv_stride: [5, 4, 4, 4, 2], iterations: [{targets: mfcc, steps: 5}]}, layer: 2",
        ),
        says=("r.yaml: encoder.frame_rate_hz: is 50, but the model's strides give 25; say 25",),
    ),
    Broken(
        id="a frame rate between two",
        recipe=edited(f"{_HUBERT}, layer: 2", f"{_PRETRAIN}, layer: 2, frame_rate_hz: 49.9"),
        says=("r.yaml: encoder.frame_rate_hz: is 49.9, but the model's strides give 50; say 50",),
    ),
)
SURROUNDINGS = (
    Broken(
        id="a venv that is not there",
        cluster=added("environment: {venv: venv}", CLUSTER),
        says=(
            "c.yaml: environment.venv: there is no {folder}/venv/bin/python to run; check the path",
        ),
    ),
    Broken(
        id="a container where there is no Slurm",
        cluster=added("environment: {container: image.sif}", CLUSTER),
        says=(
            "c.yaml: environment.container: jobs on this machine run in none; leave it out, or use a cluster with Slurm",
        ),
    ),
    Broken(
        id="a file for scratch",
        cluster=added("scratch: r.yaml", CLUSTER),
        says=(
            "c.yaml: scratch: {folder}/r.yaml is no folder; name a folder on this machine's disk",
        ),
    ),
    Broken(
        id="a folder in a file for scratch",
        cluster=added("scratch: c.yaml/scratch", CLUSTER),
        says=(
            "c.yaml: scratch: {folder}/c.yaml is no folder; name a folder on this machine's disk",
        ),
    ),
)
TOO_LARGE = (
    Broken(
        id="a worker of more cores than may be used",
        cluster=added("cpus: 2\nresources: {tokenize: {cpus_per_worker: 4}}", CLUSTER),
        says=(
            "c.yaml: resources.tokenize.cpus_per_worker: 4 CPU cores asked, cpus is 2; ask for less, or raise cpus to 4",
        ),
    ),
    Broken(
        id="a process of more cores than may be used",
        cluster=added("cpus: 1\nresources: {pack: {cpus_per_worker: 3}}", CLUSTER),
        says=(
            "c.yaml: resources.pack.cpus_per_worker: 3 CPU cores asked, cpus is 1; ask for less, or raise cpus to 3",
        ),
    ),
    Broken(
        id="more ranks than cores",
        cluster=added("cpus: 2\nresources: {train: {nodes: 2, ranks_per_node: 2}}", CLUSTER),
        says=(
            "c.yaml: resources.train: 4 CPU cores asked, cpus is 2; lower ranks_per_node, nodes or cpus_per_worker, or raise cpus to 4",
        ),
    ),
    Broken(
        id="a worker of more accelerators than a node has",
        cluster=added(
            "resources: {tokenize: {gpus_per_node: 1, gpus_per_worker: 2}}",
            CLUSTER.replace("backend: local", "backend: slurm"),
        ),
        says=(
            "c.yaml: resources.tokenize.gpus_per_worker: 2 of the 1 GPUs of a node; lower it, or raise gpus_per_node",
        ),
    ),
)
CLUSTERS = (
    *(
        Broken(
            id=f"a store in memory {url}",
            cluster=edited("store: store", f"store: {url}", CLUSTER),
            says=(
                f"cluster: store: {url}: would end with this process; name a folder or a bucket",
            ),
        )
        for url in ("memory://", "memory://x", "memory://x/store")
    ),
    *(
        Broken(
            id=f"data: {problem}",
            cluster=edited("{speech: speech}", f"{{speech: {written}}}", CLUSTER),
            says=(f"c.yaml: data.speech{problem}",),
        )
        for written, problem in (
            (
                "{root: speech, container: zip}",
                ".container: must be 'folder', 'tar' or 'parquet', not 'zip'",
            ),
            ("{container: tar}", ".root: missing; give it a value"),
            ("{root: speech, contaner: tar}", ".contaner: unknown key; did you mean 'container'?"),
            ("7", ": must be text, not 7; quote it"),
        )
    ),
    *(
        Broken(
            id=f"{adapter} in a {container}",
            recipe=edited("language: en}]", f"language: en, adapter: {adapter}}}]"),
            cluster=edited(
                "{speech: speech}", f"{{speech: {{root: speech, container: {container}}}}}", CLUSTER
            ),
            says=(f"c.yaml: data.speech.container: {container}, but {problem}",),
        )
        for adapter, container, problem in (
            ("hf_parquet", "folder", "hf_parquet has a recording in each row; say parquet"),
            ("hf_parquet", "tar", "hf_parquet has a recording in each row; say parquet"),
            ("kaldi", "parquet", "kaldi finds its lists in files; say folder or tar"),
            ("manifest", "parquet", "manifest finds its lists in files; say folder or tar"),
        )
    ),
    Broken(
        id="cluster missing file",
        cluster=None,
        names_cluster=False,
        says=("{folder}/c.yaml: no such cluster file; check --cluster and $ORCHESTRATOR_CLUSTER",),
    ),
    Broken(
        id="cluster empty", cluster="", says=("c.yaml: must be a mapping of sections, not empty",)
    ),
    Broken(
        id="cluster without store",
        cluster=edited("store: store\n", "", CLUSTER),
        says=("c.yaml: store: missing; give it a value",),
    ),
    Broken(
        id="cluster without backend",
        cluster=edited("backend: local\n", "", CLUSTER),
        says=("c.yaml: backend: missing; give it a value",),
    ),
    Broken(
        id="unknown backend",
        cluster=edited("local", "kubernetes", CLUSTER),
        says=("c.yaml: backend: must be 'local', 'slurm', 'ray' or 'fake', not 'kubernetes'",),
    ),
    Broken(
        id="unknown stage in resources",
        cluster=added("resources: {tokenise: {nodes: 1}}", CLUSTER),
        says=("c.yaml: resources.tokenise: no such stage; did you mean 'tokenize'?",),
    ),
    Broken(
        id="unknown resource",
        cluster=added("resources: {train: {gpus: 1}}", CLUSTER),
        says=(
            "c.yaml: resources.train.gpus: unknown key; known here: nodes, gpus_per_node, ranks_per_node, cpus_per_worker, gpu_memory_gb, gpus_per_worker, mem_gb, walltime_min, min_workers, max_workers",
        ),
    ),
    Broken(
        id="negative nodes",
        cluster=added("resources: {train: {nodes: -1}}", CLUSTER),
        says=("c.yaml: resources.train.nodes: must be above 0, not -1",),
    ),
    Broken(
        id="no nodes",
        cluster=added("resources: {train: {nodes: 0}}", CLUSTER),
        says=("c.yaml: resources.train.nodes: must be above 0, not 0",),
    ),
    Broken(
        id="infinite memory",
        cluster=added("resources: {train: {mem_gb: .inf}}", CLUSTER),
        says=("c.yaml: resources.train.mem_gb: must be finite, not inf",),
    ),
    Broken(
        id="more min than max workers",
        cluster=added("resources: {tokenize: {min_workers: 9, max_workers: 2}}", CLUSTER),
        says=("c.yaml: resources.tokenize: min_workers (9) must not be above max_workers (2)",),
    ),
    Broken(
        id="Ray Train on Slurm",
        cluster=added("launcher: ray_train\n", CLUSTER.replace("backend: local", "backend: slurm")),
        says=("c.yaml: launcher: ray_train is not for Slurm; leave it out, or say submitit",),
    ),
    Broken(
        id="an option that is not the user's",
        cluster=added("slurm: {extra: {comment: mine}}", CLUSTER),
        says=(
            "c.yaml: slurm: extra: comment: comment is what jobs are recognised and chained by; "
            "leave it out",
        ),
    ),
    Broken(
        id="the same with underscores",
        cluster=added("slurm: {head: {extra: {job_name: x}}}", CLUSTER),
        says=(
            "c.yaml: slurm.head: extra: job_name: job-name is what jobs are recognised and chained "
            "by; leave it out",
        ),
    ),
    Broken(
        id="the same abbreviated",
        cluster=added("slurm: {extra: {arr: 1-5}}", CLUSTER),
        says=(
            "c.yaml: slurm: extra: arr: array is what jobs are recognised and chained by; "
            "leave it out",
        ),
    ),
    *(
        Broken(
            id=f"an option after which jobs are not found, {name}",
            cluster=added(f"slurm: {{extra: {{{name}: {value}}}}}", CLUSTER),
            says=(
                f"c.yaml: slurm: extra: {name}: {name} is what jobs are recognised and chained by; leave it out",
            ),
        )
        for name, value in (("clusters", "other"), ("test-only", "true"), ("wait", "true"))
    ),
    Broken(
        id="an option that has a name here",
        cluster=added("slurm: {extra: {mem-per-cpu: 4G}}", CLUSTER),
        says=("c.yaml: slurm: extra: mem-per-cpu: say it with memory",),
    ),
    Broken(
        id="a form of asking for memory that Slurm does not know",
        cluster=added("slurm: {memory: all}", CLUSTER),
        says=(
            "c.yaml: slurm.memory: must be 'per_node', 'per_cpu', 'whole_node' or 'none', "
            "not 'all'",
        ),
    ),
    Broken(
        id="the same for one stage",
        cluster=added("slurm: {stages: {train: {memory: 0}}}", CLUSTER),
        says=(
            "c.yaml: slurm.stages.train.memory: must be 'per_node', 'per_cpu', 'whole_node' or "
            "'none', not 0",
        ),
    ),
    Broken(
        id="a sentinel of no time",
        cluster=added("slurm: {sentinel: {walltime_min: 0}}", CLUSTER),
        says=("c.yaml: slurm.sentinel.walltime_min: must be above 0, not 0",),
    ),
    Broken(
        id="an option's short name",
        cluster=added("slurm: {extra: {H: true}}", CLUSTER),
        says=("c.yaml: slurm: extra: H: write the option's long name",),
    ),
    Broken(
        id="accelerators with their number",
        cluster=added("slurm: {gres: 'gpu:a100:8'}", CLUSTER),
        says=("c.yaml: slurm: gres: gpu:a100:8: the number is added; leave it out",),
    ),
    Broken(
        id="a list for a line",
        cluster=added("slurm: {partition: 'gpu, cpu'}", CLUSTER),
        says=("c.yaml: slurm.partition: must not contain spaces: 'gpu, cpu'",),
    ),
    Broken(
        id="hours and minutes",
        cluster=added("resources: {train: {walltime_min: 48:00:00}}", CLUSTER),
        says=("c.yaml: resources.train.walltime_min: must be a whole number, not '48:00:00'",),
    ),
    Broken(
        id="a notice longer than the job",
        cluster=added(
            "resources: {train: {walltime_min: 2}}",
            CLUSTER.replace("backend: local", "backend: slurm"),
        ),
        says=(
            "c.yaml: retry.notice_s: 90 s is more than half of the shortest job (2 min); "
            "lower it, or raise walltime_min",
        ),
    ),
    Broken(
        id="a bucket on Slurm",
        cluster=edited(
            "store: store",
            "store: s3://bucket/x",
            CLUSTER.replace("backend: local", "backend: slurm"),
        ),
        says=(
            "c.yaml: store: s3://bucket/x is no path; jobs on Slurm need a folder that all nodes "
            "share: name one, to which `orchestrator resume` moves the runs of a bucket by their URLs",
        ),
    ),
    Broken(
        id="a pattern of Slurm's in the store",
        cluster=edited(
            "store: store",
            "store: /scratch/50%j",
            CLUSTER.replace("backend: local", "backend: slurm"),
        ),
        says=(
            "c.yaml: store: /scratch/50%j: % in a log's path means a number to Slurm; name a folder without it",
        ),
    ),
    Broken(
        id="a shell's variable in a path",
        cluster=edited("store: store", "store: $SCRATCH/x", CLUSTER),
        says=(
            "c.yaml: store: '$SCRATCH/x': a shell's variables mean nothing here; write ${env:NAME}",
        ),
    ),
    Broken(
        id="a URL with one slash",
        cluster=edited("store: store", "store: s3:/bucket", CLUSTER),
        says=(
            "c.yaml: store: 's3:/bucket': is no URL; write two slashes, as in s3://bucket/prefix",
        ),
    ),
    Broken(
        id="a colon in the store's path",
        cluster=edited("store: store", "store: 'a:b'", CLUSTER),
        says=(
            "cluster: store: {folder}/a:b: Python reads : as the end of a path; name a folder without it",
        ),
    ),
    Broken(
        id="a line break in the store",
        cluster=edited("store: store", 'store: "a\\nb"', CLUSTER),
        says=("c.yaml: store: must be one line, without control characters",),
    ),
    Broken(
        id="somebody unknown's home",
        cluster=edited("store: store", "store: ~nosuchuser/x", CLUSTER),
        says=("c.yaml: store: ~nosuchuser/x: no such user; check the path",),
    ),
    Broken(
        id="a line break in an option",
        cluster=added('slurm: {account: "a\\n#SBATCH --wrap=x"}', CLUSTER),
        says=("c.yaml: slurm.account: must be one line, without control characters",),
    ),
    Broken(
        id="unknown launcher",
        cluster=added("launcher: mpirun", CLUSTER),
        says=("c.yaml: launcher: must be 'ray_train' or 'submitit', not 'mpirun'",),
    ),
    Broken(
        id="no cpus",
        cluster=added("cpus: 0", CLUSTER),
        says=("c.yaml: cpus: must be above 0, not 0",),
    ),
    Broken(
        id="negative price",
        cluster=added("prices: {gpu_hour: -1}", CLUSTER),
        says=("c.yaml: prices.gpu_hour: must be at least 0, not -1",),
    ),
    Broken(
        id="nan price",
        cluster=added("prices: {gpu_hour: .nan}", CLUSTER),
        says=("c.yaml: prices.gpu_hour: must be finite, not nan",),
    ),
    Broken(
        id="setup is text",
        cluster=added("environment: {setup: module load cuda}", CLUSTER),
        says=("c.yaml: environment.setup: must be a list, not 'module load cuda'",),
    ),
    Broken(
        id="retry budget",
        cluster=added("retry: {max_attempts: 0}", CLUSTER),
        says=("c.yaml: retry.max_attempts: must be above 0, not 0",),
    ),
    Broken(
        id="data is list",
        cluster=edited("{speech: speech}", "[speech]", CLUSTER),
        says=("c.yaml: data: must be a section, not a list",),
    ),
    Broken(
        id="data null",
        cluster=edited("{speech: speech}", "{speech: }", CLUSTER),
        says=("c.yaml: data.speech: must be text, not null",),
    ),
    Broken(
        id="data bad name",
        cluster=edited("{speech: speech}", "{'a b': speech}", CLUSTER),
        says=("c.yaml: data.a b: must be text like ^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$, not 'a b'",),
    ),
    Broken(
        id="store number",
        cluster=edited("store: store", "store: 5", CLUSTER),
        says=("c.yaml: store: must be text, not 5; quote it",),
    ),
    Broken(
        id="store env not set",
        cluster=edited("store: store", "store: '${env:NO_SUCH_VARIABLE}/x'", CLUSTER),
        says=(
            "cluster: store: environment variable NO_SUCH_VARIABLE is not set; export it and try again",
        ),
    ),
    Broken(
        id="data env not set",
        cluster=edited("speech: speech", "speech: '${env:NO_SUCH_VARIABLE}/x'", CLUSTER),
        says=(
            "cluster: data.speech: environment variable NO_SUCH_VARIABLE is not set; export it and try again",
        ),
    ),
    Broken(
        id="store unknown scheme",
        cluster=edited("store: store", "store: ftpz://x/y", CLUSTER),
        says=("store 'ftpz://x/y': not a store's address; use a path, s3://, gs:// or az://",),
    ),
    Broken(
        id="store empty",
        cluster=edited("store: store", "store: ''", CLUSTER),
        says=("c.yaml: store: must not be empty",),
    ),
    Broken(
        id="a recipe for a cluster",
        cluster=RECIPE,
        says=(
            "c.yaml: backend: missing; give it a value",
            "c.yaml: store: missing; give it a value",
            "c.yaml: name: unknown key; known here: backend, store, data, models, resources, scratch, launcher, cpus, environment, slurm, ray, retry, prices, limits, notify",
            "c.yaml: corpus: unknown key; did you mean 'cpus'?",
            "c.yaml: encoder: unknown key; known here: backend, store, data, models, resources, scratch, launcher, cpus, environment, slurm, ray, retry, prices, limits, notify",
            "c.yaml: tokenizer: unknown key; known here: backend, store, data, models, resources, scratch, launcher, cpus, environment, slurm, ray, retry, prices, limits, notify",
            "c.yaml: model: unknown key; did you mean 'models'?",
            "c.yaml: train: unknown key; known here: backend, store, data, models, resources, scratch, launcher, cpus, environment, slurm, ray, retry, prices, limits, notify",
        ),
    ),
    Broken(
        id="cluster extends",
        cluster=added("extends: nope.yaml", CLUSTER),
        says=("c.yaml: extends: 'nope.yaml' is not a file; check the path",),
    ),
    Broken(
        id="limit of nothing",
        cluster=added("limits: {max_price: 5}", CLUSTER),
        says=(
            "c.yaml: limits.max_price: nothing has a price, so that it is never reached; give prices.gpu_hour or prices.cpu_hour",
        ),
    ),
    Broken(
        id="limit of GPU hours without GPUs",
        cluster=added("limits: {max_gpu_hours: 5}", CLUSTER),
        says=(
            "c.yaml: limits.max_gpu_hours: no stage has gpus_per_node, so that it is never reached; give max_price with prices.cpu_hour",
        ),
    ),
    Broken(
        id="limit of zero",
        cluster=added("limits: {max_price: 0}\nprices: {cpu_hour: 1}", CLUSTER),
        says=("c.yaml: limits.max_price: must be above 0, not 0",),
    ),
    Broken(
        id="webhook in plain sight",
        cluster=added("notify: {webhook: 'https://hooks.example/T0/s3cret'}", CLUSTER),
        says=(
            "c.yaml: notify.webhook: must not be written down here; write ${env:NAME} and export NAME where you submit",
        ),
    ),
    Broken(
        id="webhook in part in plain sight",
        cluster=added("notify: {webhook: 'https://hooks.example/${env:TOKEN}'}", CLUSTER),
        says=(
            "c.yaml: notify.webhook: must not be written down here; write ${env:NAME} and export NAME where you submit",
        ),
    ),
    Broken(
        id="notices for nobody",
        cluster=added("notify: {timeout_s: 5}", CLUSTER),
        says=("c.yaml: notify: names nobody; give webhook or command",),
    ),
    Broken(
        id="command as one text",
        cluster=added("notify: {command: tell me}", CLUSTER),
        says=("c.yaml: notify.command: must be a list, not 'tell me'",),
    ),
    Broken(
        id="notices of what never happens",
        cluster=added("notify: {command: [tell], events: [preempted]}", CLUSTER),
        says=(
            "c.yaml: notify.events.0: must be 'started', 'first_step', 'interrupted', 'back', 'failed' or 'done', not 'preempted'",
        ),
    ),
)
