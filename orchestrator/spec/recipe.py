"""The recipe: which speech, units, language model and training. Nothing of any cluster.

Defaults follow TWIST (arXiv 2305.13009) where the paper states a value; learning rate, batch,
context and precision are not in the paper, so those are this project's own choice.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from fractions import Fraction as Rational
from itertools import accumulate
from operator import mul
from typing import Annotated, Any, Literal, NamedTuple, Self, cast, get_args

import yaml
from pydantic import Field, StringConstraints, model_validator

from orchestrator.quantities import SAMPLE_RATE_HZ
from orchestrator.spec.model import (
    Count,
    Float,
    Fraction,
    Int,
    Language,
    Line,
    Name,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Reference,
    Sha256,
    Spec,
    variable_in,
)
from orchestrator.spec.sweep import Sweep, require_sound

COMMIT = re.compile(r"[0-9a-f]{40}")
"""A revision that cannot move; a branch or tag is refused where a recipe is planned, and read where
a run was submitted with it before."""
Commit = Annotated[str, Field(json_schema_extra={"pattern": rf"^{COMMIT.pattern}$"})]
DEFAULT_FIT_HOURS = 10.0
CHECKED_S, CHECKED_FRAMES_PER_CLUSTER = 300.0, 40
"""A published codebook is checked on at least so much speech, and on so many frames of it."""
MAX_MIXTURE_TERMS = 100_000
"""Most windows after which a mixture repeats which source each is of."""


Adapter = Literal[
    "folder",
    "librispeech",
    "libri_light",
    "mls",
    "spotify",
    "voxpopuli",
    "peoples_speech",
    "gigaspeech",
    "fairseq_tsv",
    "kaldi",
    "webdataset",
    "manifest",
    "hf_parquet",
    "lhotse",
]
"""The modules of `jobs.audio.corpora`, by name."""


class Source(Spec):
    """One body of recordings, by name; where it lies is the cluster's ``data`` section."""

    name: Name
    """Name of the source; the cluster's ``data`` maps it to a folder."""
    adapter: Adapter = "folder"
    """How its recordings, their speakers and languages are found below the root: the corpus in the
    layout in which it is published, or a form of list."""
    language: Language | Literal["from_folder"] = "from_folder"
    """ISO 639 code of the whole source, or ``from_folder``: what the corpus says of each recording;
    of one's own ``folder``, the first folder below the root names it."""
    lowpass_hz: Annotated[Float, Field(ge=100)] | None = None
    """Band limit in Hz, so that sources recorded at other rates sound alike, at least 100; none
    when absent."""
    channels: Literal["mix", "loudest", "first", "each"] = "mix"
    """What is made of several channels, 30 s by 30 s: their mean, the loudest, the first, or each
    of them a recording of its own, of the file's session. Where a mean cancels itself, as channels
    in opposite phase do, it is the loudest, and a log says so."""


class Windows(Spec):
    """How recordings become utterances: long ones are cut, short ones are left out."""

    min_s: PositiveFloat = 0.4
    """Stretches of speech shorter than this many seconds are left out."""
    max_s: Annotated[Float, Field(ge=0.1, le=3600)] = 30.0
    """Recordings longer than this many seconds are cut into windows of it, the last two alike; an
    hour at most, as an encoder hears a window at once."""
    max_pause_s: NonNegativeFloat = 1.0
    """Where a corpus says when there is speech: stretches with at most this many seconds between
    them are one utterance as long as they fit into ``max_s``."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_s >= self.max_s:
            raise ValueError(f"min_s ({self.min_s}) must be below max_s ({self.max_s})")
        return self


class LanguageId(Spec):
    """Which language is spoken, where the corpus does not say: a Whisper listens."""

    model: Line
    """Name in the cluster's ``models``: a folder that all nodes see, with a multilingual Whisper in
    the format of transformers or of CTranslate2."""
    sha256: Sha256
    """SHA-256 of its ``model.safetensors`` or ``model.bin``; pins the model."""
    hears: Literal["unknown", "all"] = "unknown"
    """Whose language is told: of recordings for which the corpus says none, or of all."""
    threshold: Annotated[Float, Field(gt=0, le=1)] = 0.5
    """Recordings are kept whose probability of ``corpus.languages`` is at least this; in (0, 1]."""
    windows: Annotated[Int, Field(ge=1, le=100)] = 3
    """How many stretches of 30 s with speech are heard of a recording, at most; up to 100."""


class VoiceActivity(Spec):
    """When somebody speaks: two thresholds of the probability of speech, and what a pause is."""

    threshold: Annotated[Float, Field(gt=0, lt=1)] = 0.5
    """Probability with which a stretch of speech begins; in (0, 1)."""
    release: Annotated[Float, Field(gt=0, lt=1)] = 0.35
    """It goes on until the probability is below this for ``min_pause_s``; in (0, 1)."""
    min_pause_s: PositiveFloat = 0.3
    """Pauses that are shorter, in seconds, are part of it."""
    min_speech_s: NonNegativeFloat = 0.25
    """What is shorter, in seconds, is none."""
    pad_s: NonNegativeFloat = 0.1
    """Added on either side, in seconds, up to the middle of a pause: speech begins faintly."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.release > self.threshold:
            raise ValueError(
                f"release ({self.release}) must be at most threshold ({self.threshold})"
            )
        return self


class Filter(Spec):
    """What is left out for what it sounds like: all recordings are decoded once more for it."""

    language_id: LanguageId | None = None
    """Leave out what is not in ``corpus.languages`` by its sound; not done when absent."""
    voice_activity: VoiceActivity | None = None
    """Cut recordings for which the corpus gives no times at their pauses; not done when absent."""
    duplicates: Literal["report", "drop"] = "report"
    """Recordings with the same samples as an earlier one: list them, or leave them out too."""


class Corpus(Spec):
    """Which speech is used."""

    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    """The bodies of recordings, in order."""
    snapshot: Line | None = None
    """Label of the data's state, for roots this machine cannot list; it stands instead of the
    fingerprint that visible roots get."""
    languages: Annotated[tuple[Language, ...], Field(min_length=1)] = ("en",)
    """ISO 639 codes that are kept; utterances in others are listed as left out."""
    data_fraction: Annotated[Float, Field(gt=0, le=1)] = 1.0
    """Share of the kept recordings that is used, chosen by the hash of their ids; in (0, 1]."""
    windows: Windows = Windows()
    """Bounds on the length of an utterance."""
    filter: Filter | None = None
    """What is left out for what it sounds like; when absent, nothing is."""
    shard_hours: PositiveFloat = 0.5
    """Hours of audio in one shard, the unit of work that is done or not done."""
    max_quarantine_percent: Annotated[Float, Field(ge=0, le=100)] = 1.0
    """Recordings that may be unreadable, in percent of all; at least 5 may. More end the run, as a
    decoder or a copy that is broken looks like many broken files. It changes no result."""

    @property
    def keeps_unknown_languages(self) -> bool:
        """Whether recordings of unknown languages are listed, as they will be heard."""
        return self.filter is not None and self.filter.language_id is not None

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        names = [source.name for source in self.sources]
        if twice := next((n for n in names if names.count(n) > 1), None):
            raise ValueError(f"sources: {twice!r} is given twice; give each its own name")
        return self


class Checkpoint(Spec):
    """When training state is made durable; changes no result, so it is in no key."""

    every_steps: PositiveInt | Literal["auto"] = 500
    """Steps between checkpoints; ``auto``: as many as take sqrt(2 C M) seconds, for the measured
    stall C of a checkpoint and the mean time M between failures (Young 1974, Daly 2006)."""
    every_min: PositiveFloat | None = None
    """Minutes between checkpoints, in place of ``every_steps``."""
    keep_last: Annotated[Int, Field(ge=2)] = 2
    """Newest checkpoints kept; never fewer than two."""
    keep_every_steps: PositiveInt | None = None
    """Also keep every checkpoint whose step divides by this."""


class PretrainIteration(Spec):
    """One pass of HuBERT's masked prediction, with its own targets."""

    targets: Literal["mfcc"] | Annotated[Int, Field(ge=1)] = "mfcc"
    """What is clustered into targets: MFCC with deltas, or a layer of the previous iteration's
    model."""
    num_clusters: Annotated[Int, Field(ge=2, le=65_535)] = 100
    """Number of k-means targets."""
    steps: PositiveInt
    """Optimiser steps."""


class Pretrain(Spec):
    """A HuBERT trained from nothing on the corpus (arXiv 2106.07447, section II)."""

    conv_dim: tuple[PositiveInt, ...] = (32, 64, 128, 192, 192)
    """Channels of each convolution of the waveform front end."""
    conv_kernel: tuple[PositiveInt, ...] = (10, 8, 4, 4, 4)
    """Kernel of each convolution, in its input's samples."""
    conv_stride: tuple[PositiveInt, ...] = (5, 4, 4, 2, 2)
    """Stride of each convolution; their product is the hop: 320 samples are 50 Hz, 640
    are 25 Hz."""
    hidden_size: PositiveInt = 192
    """Width of the transformer."""
    num_layers: PositiveInt = 4
    """Transformer layers."""
    num_heads: PositiveInt = 4
    """Attention heads."""
    intermediate_size: PositiveInt = 768
    """Width of the feed-forward layers."""
    iterations: Annotated[tuple[PretrainIteration, ...], Field(min_length=1)]
    """Passes of masked prediction, each starting from new weights; the first must use ``mfcc``."""
    lr: PositiveFloat = 1e-3
    """Peak learning rate of Adam."""
    warmup_steps: Count = 200
    """Steps of linear warm-up, followed by linear decay to a tenth of the peak."""
    batch_size: PositiveInt = 4
    """Crops in one step."""
    crop_s: PositiveFloat = 3.0
    """Seconds of audio in one crop."""
    mask_prob: Annotated[Float, Field(gt=0, lt=1)] = 0.08
    """Probability that a frame starts a masked span."""
    mask_length: PositiveInt = 10
    """Frames in a masked span."""
    unmasked_weight: NonNegativeFloat = 0.5
    """Weight of the loss on frames that were not masked."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Arithmetic of the training; optimizer state is fp32 in either. bf16 is for accelerators."""
    max_hours: PositiveFloat = 8.0
    """Hours after which no further utterance is drawn from the corpus: the last one may end beyond
    them."""
    seed: Count = 0
    """Seed of the choice of audio, of weights, crops and masks."""
    checkpoint: Checkpoint = Checkpoint()
    """When training state is saved."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not len(self.conv_dim) == len(self.conv_kernel) == len(self.conv_stride):
            raise ValueError("conv_dim, conv_kernel and conv_stride must have the same length")
        hops = accumulate(self.conv_stride, mul, initial=1)
        field = 1 + sum((k - 1) * hop for k, hop in zip(self.conv_kernel, hops, strict=False))
        if int(self.crop_s * SAMPLE_RATE_HZ) < field:
            raise ValueError(
                f"crop_s ({self.crop_s:g}) must hold the receptive field of the convolutions: "
                f"{field} samples, {field / SAMPLE_RATE_HZ:g} s"
            )
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must divide by num_heads ({self.num_heads})"
            )
        if self.iterations[0].targets != "mfcc":
            raise ValueError(
                "iterations[0].targets must be mfcc: there is no earlier model to take a layer of"
            )
        if any(isinstance(i.targets, int) and i.targets > self.num_layers for i in self.iterations):
            raise ValueError(f"iterations: targets must be a layer of 1..{self.num_layers}")
        return self


class Encoder(Spec):
    """Where frame features come from: a published HuBERT, weights in a file, one trained here."""

    model: str | None = None
    """Hugging Face id, or a name in the cluster's ``models``."""
    revision: Commit | None = None
    """Commit of the Hugging Face repository, 40 hex digits; pins the weights."""
    sha256: Sha256 | None = None
    """SHA-256 of ``model.safetensors``; pins the weights of a folder."""
    pretrain: Pretrain | None = None
    """Train the encoder on this recipe's corpus instead."""
    layer: PositiveInt
    """Transformer layer whose output is quantised; HF ``hidden_states[layer]``, fairseq
    ``output_layer``."""
    output: Literal["after_residual", "before_residual", "final_norm"] = "after_residual"
    """What is taken of the layer: its output, what its feed-forward adds to its input, or its
    output after the norm at the end of pre-norm models (``last_hidden_state`` of one cut there)."""
    frame_rate_hz: PositiveFloat = 50.0
    """Frames per second; checked against the model's strides."""
    normalize_waveform: bool | None = None
    """Scale every wave to mean 0 and variance 1, as some models were trained; when absent, what
    ``preprocessor_config.json`` of the model says."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the encoder; anything but fp32 changes some units, and is in the artifact's
    key."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.model is None) == (self.pretrain is None):
            raise ValueError("give exactly one of model and pretrain")
        if self.model is not None and not (self.revision or self.sha256):
            raise ValueError(
                "model needs revision (a Hugging Face commit) or sha256 (of model.safetensors)"
            )
        if self.pretrain is not None and self.layer > self.pretrain.num_layers:
            raise ValueError(f"layer must be 1..{self.pretrain.num_layers}, the layers of pretrain")
        return self


class Codebook(Spec):
    """A published codebook: checked on this corpus' speech, and imported where it fits it."""

    model: Line
    """Hugging Face id, or a name in the cluster's ``models``: where the file is."""
    file: Line
    """Its path there: centroids as ``.npy``, a joblib or pickle of scikit-learn's KMeans or
    MiniBatchKMeans (of which nothing is run), or a flat L2 index of faiss."""
    revision: Commit | None = None
    """Commit of the Hugging Face repository, 40 hex digits; pins the file."""
    sha256: Sha256 | None = None
    """SHA-256 of the file; pins one of a folder."""

    @model_validator(mode="after")
    def _pinned(self) -> Self:
        if not (self.revision or self.sha256):
            raise ValueError(
                "codebook needs revision (a Hugging Face commit) or sha256 (of its file)"
            )
        if ".." in self.file.split("/") or self.file.startswith("/"):
            raise ValueError("file must be a path below model, without ..")
        return self


class Tokenizer(Spec):
    """How features become units."""

    codebook: Codebook | None = None
    """Take a published codebook instead of fitting one."""

    num_clusters: Annotated[Int, Field(ge=2, le=65_535)] = 500
    """Units in the codebook, a published one's rows; they must fit a uint16."""
    fit_hours: PositiveFloat = DEFAULT_FIT_HOURS
    """Hours of audio whose frames k-means is fitted on."""
    deduplicate: bool = True
    """Merge runs of one unit into one token, as TWIST does."""
    seed: Count = 0
    """Seed of the sample and of k-means++."""

    @model_validator(mode="after")
    def _fits_or_is_given(self) -> Self:
        if self.codebook is not None and self.fit_hours != DEFAULT_FIT_HOURS:
            raise ValueError("fit_hours: nothing is fitted where a codebook is given; leave it out")
        return self


class Model(Spec):
    """The language model: a text LM whose vocabulary is replaced by units."""

    text_model: str
    """Hugging Face id of a causal LM, or a name in the cluster's ``models``."""
    revision: Commit | None = None
    """Commit of the Hugging Face repository, 40 hex digits; pins the weights."""
    sha256: Sha256 | None = None
    """SHA-256 of the weights file, for models that come from the cluster's ``models``."""
    num_layers: PositiveInt | None = None
    """Keep only this many leading transformer layers; all when absent."""
    init: Literal["twist", "cold"] = "twist"
    """``twist`` keeps the text LM's body; ``cold`` is the same architecture from random weights."""
    init_std: PositiveFloat | None = None
    """Std of re-initialised weights (the unit table; for ``cold`` every matrix); the model config's
    when absent."""
    embedding_init: Literal["random", "text_mean", "text_sample", "text_nearest"] = "random"
    """What the units' embeddings begin as: draws, as TWIST has them; all the mean of the text
    tokens'; those of text tokens drawn at random; or of the text token that is nearest to the unit
    by what it occurs beside, no token for two units."""

    @model_validator(mode="after")
    def _pinned(self) -> Self:
        if not (self.revision or self.sha256):
            raise ValueError(
                "text_model needs revision (a Hugging Face commit) or sha256 (of its weights file)"
            )
        if self.init == "cold" and self.embedding_init != "random":
            raise ValueError(
                f"embedding_init: {self.embedding_init} begins with the text model's embeddings, "
                "and a cold start with none of its weights; leave it out, or set init: twist"
            )
        return self


class Optimizer(Spec):
    """AdamW (arXiv 1711.05101)."""

    lr: PositiveFloat = 4e-4
    """Peak learning rate."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    """Decay of the first and second moment."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay."""
    grad_clip: PositiveFloat = 1.0
    """Largest global gradient norm."""


class Schedule(Spec):
    """Learning rate over steps."""

    kind: Literal["inverse_sqrt", "cosine", "constant"] = "inverse_sqrt"
    """Shape after the warm-up; TWIST uses inverse_sqrt."""
    warmup_steps: Count = 100
    """Steps of linear warm-up."""


class Execution(Spec):
    """How a global batch is computed; changes no result beyond rounding, so it is in no key."""

    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage."""
    micro_batch: PositiveInt
    """Sequences per rank in one forward pass; the rest of the global batch is accumulated."""
    offload: bool = False
    """Keep optimizer state in host memory."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass."""
    compile: bool = False
    """torch.compile the model (GPU only)."""
    attention: Literal["sdpa", "flash_attention_2", "eager"] = "sdpa"
    """How attention is computed; flash_attention_2 needs a GPU, bf16 and its own package."""


class Train(Spec):
    """One training of the language model."""

    context_length: Annotated[Int, Field(ge=8)] = 1024
    """Tokens in one sequence."""
    global_batch_tokens: PositiveInt = 262_144
    """Tokens in one optimizer step over all ranks; a multiple of context_length."""
    steps: PositiveInt
    """Optimizer steps."""
    optimizer: Optimizer = Optimizer()
    """AdamW's settings."""
    schedule: Schedule = Schedule()
    """Learning-rate schedule."""
    precision: Literal["fp32", "bf16"] = "bf16"
    """Arithmetic of forward and backward; optimizer state is fp32."""
    validate_every_steps: PositiveInt = 500
    """Steps between validation losses; the last step is always validated."""
    checkpoint: Checkpoint = Checkpoint()
    """When training state is saved."""
    max_nonfinite_in_row: Count = 3
    """Steps in a row whose loss or gradient is not finite that are passed over; one more rolls back
    to the last checkpoint and puts their windows on the skip list."""
    execution: Execution | None = None
    """ZeRO stage and micro-batch; derived from the cluster when absent."""

    @model_validator(mode="after")
    def _whole_sequences(self) -> Self:
        if self.global_batch_tokens % self.context_length:
            raise ValueError(
                f"global_batch_tokens ({self.global_batch_tokens}) must be a multiple of "
                f"context_length ({self.context_length})"
            )
        return self

    @property
    def global_batch(self) -> int:
        """Sequences in one optimizer step."""
        return self.global_batch_tokens // self.context_length


class Split(Spec):
    """Which recordings are held out: by hashes, or their rank where a share of those takes none."""

    by: Literal["session", "speaker", "recording"] = "session"
    """What is never torn apart: a corpus' session (a book, a show), or the recording where it names
    none; all that a speaker says, so that no voice is in two splits; or a recording."""
    valid: Annotated[Float, Field(gt=0, lt=0.5)] = 0.02
    """Share of them for validation: choosing between variants."""
    test: Annotated[Float, Field(gt=0, lt=0.5)] = 0.02
    """Share of them for the reported perplexity."""
    train_fraction: Annotated[Float, Field(gt=0, le=1)] = 1.0
    """Share of the others that is trained on: a smaller share is a part of a larger one, and all
    have corpus, units, valid and test in common."""


class Perplexity(Spec):
    """How well the model predicts held-out speech."""

    bootstrap_samples: Annotated[Int, Field(ge=100)] = 1000
    """Resamplings of utterances behind the 95 % interval."""
    seed: Count = 0
    """Seed of the bootstrap."""


class Continuations(Spec):
    """What the model says after the beginning of a test utterance."""

    num_prompts: PositiveInt = 4
    """Test utterances whose beginning is continued."""
    prompt_s: PositiveFloat = 3.0
    """Seconds of each prompt."""
    num_tokens: PositiveInt = 64
    """Tokens generated after each prompt."""
    temperature: PositiveFloat = 0.8
    """Sampling temperature."""
    seed: Count = 0
    """Seed of sampling."""


class UnitQuality(Spec):
    """What the units tell of phones, where it is known when which phone is said."""

    alignments: Name
    """Name in the cluster's ``data``: phone times of recordings of the corpus, called as they are;
    Praat TextGrids with a tier ``phones``, ``.PHN``, ``.ctm`` or ``.lab``. Times count from the
    beginning of a file, also of a stretch of it."""
    hours: PositiveFloat = 2.0
    """Hours of audio that are judged; all with phone times when there are fewer."""
    seed: Count = 0
    """Seed of the choice of recordings, and of the clusters of MFCC to compare with."""


SuiteKind = Literal["swuggy", "sblimp", "prosaudit", "ssc", "tsc", "salmon", "babyslm"]
"""The suites whose official layouts are read."""
SuiteName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+$")]


class Suite(Spec):
    """Pairs of recordings of which a model should find the first likelier."""

    kind: SuiteKind | None = None
    """Which suite; what the section is called when absent."""
    data: Name | None = None
    """Name in the cluster's ``data``: its folder, in its official layout; what the section is
    called when absent."""
    bootstrap_samples: Annotated[Int, Field(ge=100)] = 1000
    """Resamplings of pairs, all voices of each together, behind the 95 % intervals."""
    seed: Count = 0
    """Seed of the bootstrap."""


class AskedSuite(NamedTuple):
    """A suite that is scored."""

    kind: SuiteKind
    data: str
    """Name in the cluster's ``data``."""
    settings: Suite


class Evaluate(Spec):
    """What is measured: a section for each score; null leaves it out."""

    unit_quality: UnitQuality | None = None
    """PNMI, purities and ABX of the units, beside those of MFCC; needs no language model."""

    perplexity: Perplexity | None = Perplexity()
    """Perplexity and nats per second on the validation and test splits."""
    continuations: Continuations | None = Continuations()
    """Sampled continuations of test utterances."""
    suites: dict[SuiteName, Suite | None] | None = Field(default_factory=dict)
    """Suites that are scored, each by a name: ``{swuggy: {}, sblimp: {data: slm21}}``; null leaves
    one out, or all."""

    @property
    def asked_suites(self) -> dict[str, AskedSuite]:
        """The suites that are scored, by their names here."""
        return {
            name: AskedSuite(suite.kind or cast(SuiteKind, name), suite.data or name, suite)
            for name, suite in (self.suites or {}).items()
            if suite
        }

    @model_validator(mode="after")
    def _known_suites(self) -> Self:
        kinds = get_args(SuiteKind)
        for name, suite in (self.suites or {}).items():
            if suite and not suite.kind and name not in kinds:
                raise ValueError(f"suites.{name}.kind: missing; give one of {', '.join(kinds)}")
        return self

    @model_validator(mode="before")
    @classmethod
    def _by_score(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and (sections := by_score(raw)) != raw:
            shown = yaml.safe_dump(sections, default_flow_style=True, sort_keys=False, width=1000)
            raise ValueError(f"each score has a section of its own; write {shown.strip()}")
        return raw


_FLAT_SCORES = {
    "bootstrap_samples": ("perplexity.bootstrap_samples",),
    "continuations": ("continuations.num_prompts",),
    "prompt_s": ("continuations.prompt_s",),
    "continuation_tokens": ("continuations.num_tokens",),
    "temperature": ("continuations.temperature",),
    "seed": ("perplexity.seed", "continuations.seed"),
}
"""Keys of ``evaluate`` before each score had a section, and where they are now."""


def moved_to(dotted: str, value: Any) -> str:
    """Where a dotted key of ``evaluate`` is since each score has a section; "" for any other."""
    section, _, name = dotted.partition(".")
    if section != "evaluate" or isinstance(value, Mapping | None):
        return ""
    return " and ".join(f"evaluate.{place}" for place in _FLAT_SCORES.get(name, ()))


def by_score(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The section ``evaluate``, with keys from before each score had a section where they are now.

    No prompts means no continuations.
    """
    flat = [n for n in raw if n in _FLAT_SCORES and not isinstance(raw[n], Mapping | None)]
    if not flat:
        return dict(raw)
    sections = {name: value for name, value in raw.items() if name not in flat}
    for name in flat:
        for dotted in _FLAT_SCORES[name]:
            score, _, key = dotted.partition(".")
            section = sections.get(score)
            if isinstance(section, Mapping | None):  # anything else is refused for what it is
                sections[score] = {**(section or {}), key: raw[name]}
    return {**sections, **({"continuations": None} if raw.get("continuations") == 0 else {})}


class WeightsAndBiases(Spec):
    """Curves at Weights & Biases."""

    project: Name
    """Name of the project."""
    entity: Name | None = None
    """User or team that the project belongs to; the key's own when absent."""
    mode: Literal["online", "offline"] = "online"
    """``offline`` keeps everything beside the run's attempts, for ``wandb sync``."""
    api_key: Reference = "${env:WANDB_API_KEY}"
    """Variable with the key; not needed offline."""
    base_url: Reference | None = None
    """Variable with the server's address; the public one when absent."""


class MLflow(Spec):
    """Curves in MLflow."""

    uri: Reference = "${env:MLFLOW_TRACKING_URI}"
    """Variable with the tracking server's address, or ``file:///...``."""
    experiment: Line
    """Name of the experiment; made when it is not there."""
    username: Reference | None = None
    """Variable with the user's name."""
    password: Reference | None = None
    """Variable with the password."""
    token: Reference | None = None
    """Variable with an access token."""


class Tracking(Spec):
    """Where curves go besides the ledger: steps up to the last checkpoint, validation, scores."""

    tensorboard: bool = True
    """Write TensorBoard events beside the run's attempts."""
    wandb: WeightsAndBiases | None = None
    """Weights & Biases; none when absent."""
    mlflow: MLflow | None = None
    """MLflow; none when absent."""

    @property
    def packages(self) -> tuple[str, ...]:
        """Python packages of the trackers asked for, named like their sections."""
        asked = {"wandb": self.wandb, "mlflow": self.mlflow}
        return tuple(name for name, section in asked.items() if section)

    @property
    def references(self) -> dict[str, str]:
        """What is looked up in the environment, ``${env:NAME}`` by place: ``wandb.api_key``."""
        found: dict[str, str] = {}
        if self.wandb:
            fields = {"base_url": self.wandb.base_url}
            if self.wandb.mode == "online":
                fields["api_key"] = self.wandb.api_key
            found |= {f"wandb.{name}": value for name, value in fields.items() if value}
        if self.mlflow:
            names = ("uri", "username", "password", "token")
            values = {name: getattr(self.mlflow, name) for name in names}
            found |= {f"mlflow.{name}": value for name, value in values.items() if value}
        return found

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables that must be set where a run is submitted, and who names them."""
        found = self.references.items()
        return {variable_in(value): f"tracking.{place}" for place, value in found}


class Recipe(Spec):
    """Everything that decides the result."""

    name: Name
    """Name of the recipe; the run's name starts with it."""
    corpus: Corpus
    """Which speech."""
    encoder: Encoder
    """Which features."""
    tokenizer: Tokenizer = Tokenizer()
    """Which units."""
    split: Split = Split()
    """Which recordings are held out."""
    mixture: dict[Name, PositiveFloat] = Field(default_factory=dict)
    """Source to its share of the training's windows, as a weight: {books: 1, talks: 3}; all sources
    of the corpus, or none for every window alike. A source begins anew when it is used up."""
    model: Model
    """Which language model."""
    train: Train
    """Which training."""
    evaluate: Evaluate = Evaluate()
    """Which scores."""
    tracking: Tracking = Tracking()
    """Where curves go."""
    sweep: Sweep = Field(default_factory=dict)
    """Dotted key to values; or a name of your own to named points, each a mapping of the dotted
    keys that it sets: {tokenizer: {coarse: {encoder.layer: 9, tokenizer.num_clusters: 100}}}. The
    product of all axes gives the variants."""
    seed: Count = 0
    """Seed of the training: weights, data order and dropout."""

    @model_validator(mode="after")
    def _mixes_its_sources(self) -> Self:
        names = [source.name for source in self.corpus.sources]
        if other := next((name for name in self.mixture if name not in names), None):
            raise ValueError(f"mixture: {other!r} is no source; they are {', '.join(names)}")
        if self.mixture and (left := [name for name in names if name not in self.mixture]):
            raise ValueError(f"mixture: {', '.join(left)} has no weight; give every source one")
        if sum(self.mixture_ratio.values()) > MAX_MIXTURE_TERMS:
            raise ValueError(
                "mixture: the weights are in no ratio of whole numbers that add up to at most "
                f"{MAX_MIXTURE_TERMS}; round them"
            )
        return self

    @property
    def data_names(self) -> tuple[str, ...]:
        """The names in the cluster's ``data`` that it reads from."""
        judged = self.evaluate.unit_quality
        names = [source.name for source in self.corpus.sources]
        suites = [suite.data for suite in self.evaluate.asked_suites.values()]
        return tuple(dict.fromkeys([*names, *([judged.alignments] if judged else []), *suites]))

    @property
    def codebook_hours(self) -> float:
        """Hours of audio that the codebook is fitted on, or a published one is checked on."""
        if self.tokenizer.codebook is None:
            return self.tokenizer.fit_hours
        frames = CHECKED_FRAMES_PER_CLUSTER * self.tokenizer.num_clusters
        return max(CHECKED_S, frames / self.encoder.frame_rate_hz) / 3600

    @property
    def mixture_ratio(self) -> dict[str, int]:
        """The weights in lowest whole numbers, in the order of the sources."""
        exact = {
            s.name: Rational(repr(self.mixture[s.name]))
            for s in self.corpus.sources
            if self.mixture
        }
        common = math.lcm(*(weight.denominator for weight in exact.values()))
        whole = {name: int(weight * common) for name, weight in exact.items()}
        return {name: weight // math.gcd(*whole.values()) for name, weight in whole.items()}

    @model_validator(mode="after")
    def _distinct_variants(self) -> Self:
        require_sound(self.sweep)
        return self
