"""What a key is made of: a field of a recipe changes its own stage and the later ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from pydantic import create_model

from orchestrator.errors import SpecErrors
from orchestrator.plan.graph import nodes_of
from orchestrator.plan.keys import (
    canonical_json,
    changes,
    flatten,
    key_of,
    keyed,
    nearest_changes,
)
from orchestrator.plan.stages import BY_NAME, STAGES, Facts, inputs_of
from orchestrator.spec.loader import load_recipe
from orchestrator.spec.model import Spec
from orchestrator.spec.recipe import (
    Continuations,
    Corpus,
    Model,
    Optimizer,
    Perplexity,
    Pretrain,
    Recipe,
    Schedule,
    Split,
    Windows,
)
from tests.unit.orchestrator.recipes import (
    FACTS,
    keys_of,
    plan_of,
    pretrained_recipe,
    recipe,
    swept,
)
from tests.unit.source import ROOT

ORDER = [stage.name for stage in STAGES]
MAIN = ORDER[: ORDER.index("perplexity")]
NEVER = None
LM = "0" * 64

# Dotted key, another value, the first stage that it changes.
FIELDS: tuple[tuple[str, Any, str | None], ...] = (
    ("name", "other", NEVER),
    ("corpus.sources", [{"name": "speech", "language": "en", "lowpass_hz": 4000}], "corpus"),
    ("corpus.snapshot", "2026-01", "corpus"),
    ("corpus.languages", ["en", "fr"], "corpus"),
    ("corpus.data_fraction", 0.5, "corpus"),
    ("corpus.windows.min_s", 0.5, "corpus"),
    ("corpus.windows.max_s", 9, "corpus"),
    ("corpus.windows.max_pause_s", 0.5, "corpus"),
    ("corpus.max_quarantine_percent", 5, NEVER),
    ("corpus.filter", {"duplicates": "drop"}, "codebook"),
    ("corpus.shard_hours", 0.1, "corpus"),
    ("encoder.model", "the-same-weights-elsewhere", NEVER),
    ("encoder.revision", "abc", NEVER),
    ("encoder.sha256", LM, "encoder"),
    ("encoder.frame_rate_hz", 25, NEVER),
    ("encoder.normalize_waveform", True, "encoder"),
    ("encoder.layer", 1, "codebook"),
    ("encoder.output", "before_residual", "codebook"),
    ("encoder.precision", "bf16", "tokenize"),
    ("tokenizer.codebook", {"model": "m", "file": "km.bin", "sha256": LM}, "codebook"),
    ("tokenizer.num_clusters", 40, "codebook"),
    ("tokenizer.fit_hours", 1, "codebook"),
    ("tokenizer.seed", 1, "codebook"),
    ("tokenizer.deduplicate", False, "tokenize"),
    ("split.by", "speaker", "pack"),
    ("split.valid", 0.1, "pack"),
    ("split.test", 0.1, "pack"),
    ("split.train_fraction", 0.1, "pack"),
    ("mixture", {"speech": 1}, "pack"),
    ("train.context_length", 64, "pack"),
    ("model.text_model", "the-same-weights-elsewhere", NEVER),
    ("model.revision", "abc", NEVER),
    ("model.sha256", LM, "train"),
    ("model.num_layers", 3, "train"),
    ("model.init", "cold", "train"),
    ("model.init_std", 0.05, "train"),
    ("model.embedding_init", "text_mean", "train"),
    ("seed", 1, "train"),
    ("train.global_batch_tokens", 256, "train"),
    ("train.steps", 13, "train"),
    ("train.optimizer.lr", 1e-3, "train"),
    ("train.optimizer.betas", [0.9, 0.95], "train"),
    ("train.optimizer.eps", 1e-6, "train"),
    ("train.optimizer.weight_decay", 0.1, "train"),
    ("train.optimizer.grad_clip", 2, "train"),
    ("train.schedule.kind", "cosine", "train"),
    ("train.schedule.warmup_steps", 5, "train"),
    ("train.precision", "bf16", "train"),
    ("train.validate_every_steps", 5, "train"),
    ("train.checkpoint.every_steps", 5, NEVER),
    ("train.checkpoint.keep_last", 3, NEVER),
    ("train.checkpoint.keep_every_steps", 10, NEVER),
    ("train.checkpoint.every_min", 5.0, NEVER),
    ("train.max_nonfinite_in_row", 1, NEVER),
    ("train.execution", {"micro_batch": 1, "zero_stage": 2, "offload": True}, NEVER),
    ("evaluate.perplexity.bootstrap_samples", 200, "perplexity"),
    ("evaluate.perplexity.seed", 1, "perplexity"),
    ("evaluate.continuations.num_prompts", 1, "continuations"),
    ("evaluate.continuations.prompt_s", 1, "continuations"),
    ("evaluate.continuations.num_tokens", 8, "continuations"),
    ("evaluate.continuations.temperature", 1, "continuations"),
    ("evaluate.continuations.seed", 1, "continuations"),
    ("evaluate.suites", {"swuggy": {}}, NEVER),
    ("tracking.tensorboard", False, NEVER),
    ("tracking.wandb", {"project": "p", "mode": "offline"}, NEVER),
    ("tracking.mlflow", {"experiment": "e"}, NEVER),
)
# Field below encoder.pretrain, another value, the first node that it changes.
PRETRAIN_FIELDS: tuple[tuple[str, Any, str | None], ...] = (
    ("conv_dim", [16, 16, 16, 16, 16], "pretrain.1"),
    ("conv_kernel", [10, 8, 4, 4, 2], "targets.1"),
    ("conv_stride", [5, 4, 4, 2, 4], "targets.1"),
    ("hidden_size", 96, "pretrain.1"),
    ("num_layers", 3, "pretrain.1"),
    ("num_heads", 2, "pretrain.1"),
    ("intermediate_size", 96, "pretrain.1"),
    ("iterations", [{"targets": "mfcc", "steps": 6}], "pretrain.1"),
    ("lr", 1e-4, "pretrain.1"),
    ("warmup_steps", 1, "pretrain.1"),
    ("batch_size", 2, "pretrain.1"),
    ("crop_s", 1, "pretrain.1"),
    ("mask_prob", 0.1, "pretrain.1"),
    ("mask_length", 5, "pretrain.1"),
    ("unmasked_weight", 0, "pretrain.1"),
    ("precision", "bf16", "pretrain.1"),
    ("max_hours", 1, "targets.1"),
    ("seed", 3, "targets.1"),
    ("checkpoint.every_steps", 5, NEVER),
    ("checkpoint.keep_last", 3, NEVER),
    ("checkpoint.keep_every_steps", 10, NEVER),
    ("checkpoint.every_min", 5.0, NEVER),
)


def changed(base: Recipe, other: Recipe) -> list[str]:
    """Nodes whose keys differ."""
    before, after = keys_of(plan_of(base)), keys_of(plan_of(other))
    return [node for node in before if before[node] != after[node]]


def after(
    first: str | None, of: Recipe | None = None, *, without: tuple[str, ...] = ()
) -> list[str]:
    """A node of a recipe and those after it."""
    nodes = [node.name for node in nodes_of(of or recipe())]
    return [node for node in nodes[nodes.index(first) :] if node not in without] if first else []


@pytest.mark.parametrize(("field", "value", "first"), FIELDS, ids=[f[0] for f in FIELDS])
def test_a_field_changes_its_stage_and_the_later_ones(
    field: str, value: Any, first: str | None
) -> None:
    # A published encoder does not depend on the corpus.
    without = {"corpus": ("encoder",), "perplexity": ("continuations",)}.get(first or "", ())
    assert changed(recipe(), recipe(**{field: value})) == after(first, without=without)


@pytest.mark.parametrize(
    ("field", "value", "first"), PRETRAIN_FIELDS, ids=[f[0] for f in PRETRAIN_FIELDS]
)
def test_a_field_of_pretraining_changes_its_node_and_the_later_ones(
    field: str, value: Any, first: str | None
) -> None:
    base = pretrained_recipe()
    other = pretrained_recipe(**{f"encoder.pretrain.{field}": value})
    assert changed(base, other) == after(first, base)


WHISPER = {"model": "w", "sha256": LM}


@pytest.mark.parametrize(
    ("filter_", "other", "first"),
    [
        ({}, {"duplicates": "report"}, NEVER),
        ({}, {"duplicates": "drop"}, "filter"),
        ({}, {"voice_activity": {}}, "filter"),
        ({"voice_activity": {}}, {"voice_activity": {"threshold": 0.6}}, "filter"),
        ({"voice_activity": {}}, {"voice_activity": {"threshold": 0.5}}, NEVER),
        ({}, {"language_id": WHISPER}, "corpus"),  # which lists unknown languages for it
        ({"language_id": WHISPER}, {"language_id": {**WHISPER, "model": "v"}}, NEVER),
        ({"language_id": WHISPER}, {"language_id": {**WHISPER, "threshold": 0.6}}, "filter"),
        ({"language_id": WHISPER}, {"language_id": {**WHISPER, "sha256": "1" * 64}}, "filter"),
    ],
)
def test_a_filter_changes_its_node_and_the_later_ones(
    filter_: dict[str, Any], other: dict[str, Any], first: str | None
) -> None:
    base, changed_one = recipe(**{"corpus.filter": filter_}), recipe(**{"corpus.filter": other})
    assert changed(base, changed_one) == after(first, base, without=("encoder",))


def test_a_later_iteration_changes_nothing_of_those_before() -> None:
    iterations = [{"targets": "mfcc", "steps": 5}, {"targets": 1, "steps": 5}]
    base = pretrained_recipe(**{"encoder.pretrain.iterations": iterations})
    for change, first in (({"targets": 2}, "targets.2"), ({"steps": 6}, "pretrain.2")):
        changed_iterations = [iterations[0], iterations[1] | change]
        other = pretrained_recipe(**{"encoder.pretrain.iterations": changed_iterations})
        assert changed(base, other) == after(first, base)


def test_waves_as_they_are_change_no_key_of_pinned_weights() -> None:
    """They were the only ones once; what a model says of its own waves is pinned by a commit."""
    assert changed(recipe(), recipe(**{"encoder.normalize_waveform": False})) == []
    pin = {"encoder.sha256": None, "encoder.revision": "abc"}
    silent = recipe(**pin)
    for said in (True, False):
        assert changed(silent, recipe(**pin, **{"encoder.normalize_waveform": said})) == after(
            "encoder"
        )


def test_a_published_codebook_is_its_digest_or_its_commit() -> None:
    def given(**over: Any) -> Recipe:
        pinned = {"model": "m", "file": "km.bin", "sha256": LM} | over
        return recipe(**{"tokenizer.codebook": pinned})

    base = given()
    for elsewhere in ({"model": "n"}, {"file": "other.npy"}, {"revision": "abc"}):
        assert changed(base, given(**elsewhere)) == []
    assert changed(base, given(sha256="1" * 64)) == after("codebook")
    unpinned = {"sha256": None, "revision": "abc"}
    by_commit = given(**unpinned)
    for other in ({"model": "n"}, {"file": "other.npy"}, {"revision": "def"}):
        assert changed(by_commit, given(**{**unpinned, **other})) == after("codebook")


def test_judging_units_is_a_node_of_its_own() -> None:
    section = {"alignments": "speech"}
    judged = recipe(**{"evaluate.unit_quality": section})
    assert changed(recipe(), judged) == []
    for change in ({"alignments": "other"}, {"hours": 1}, {"seed": 1}):
        other = recipe(**{"evaluate.unit_quality": section | change})
        assert changed(judged, other) == ["unit_quality"]
    exact = {"evaluate.unit_quality": section, "encoder.precision": "bf16"}
    assert "unit_quality" in changed(judged, recipe(**exact))
    before, after = (
        keys_of(
            plan_of(judged, facts=Facts(listings=FACTS.listings, alignments={"speech": digit * 64}))
        )
        for digit in "ab"
    )
    assert [node for node in before if before[node] != after[node]] == ["unit_quality"]


def suites(facts: Mapping[str, str] | None = None, **sections: Any) -> dict[str, str]:
    """Keys of a recipe with some suites, by node."""
    asked = recipe(**{"evaluate.suites": sections})
    return keys_of(plan_of(asked, facts=Facts(listings=FACTS.listings, suites=facts or {})))


def test_each_suite_has_units_and_scores_of_its_own() -> None:
    one, both = suites(swuggy={}), suites(swuggy={}, sblimp={})
    assert both.items() > one.items(), "one more suite scores nothing anew"
    assert list(both)[-4:] == [
        "suite_units.swuggy", "suite_scores.swuggy", "suite_units.sblimp", "suite_scores.sblimp",
    ]  # fmt: skip
    assert suites(swuggy={}, sblimp=None) == one


def test_a_suite_is_its_kind_and_what_lies_in_its_folder() -> None:
    of = {"a": "1" * 64, "b": "1" * 64, "c": "2" * 64}
    base = suites(of, words={"kind": "swuggy", "data": "a"})
    mine = ["suite_units.words", "suite_scores.words"]

    def changed_by(**change: Any) -> list[str]:
        other = suites(of, words={"kind": "swuggy", "data": "a", **change})
        return [node for node in base if base[node] != other[node]]

    assert changed_by(data="b") == []
    assert changed_by(data="c") == changed_by(kind="sblimp") == mine
    assert changed_by(seed=1) == changed_by(bootstrap_samples=200) == mine[1:]
    elsewhere = suites({"swuggy": "1" * 64}, swuggy={})
    assert elsewhere["suite_scores.swuggy"] == base["suite_scores.words"], "names are in no key"


def test_models_of_one_tokenizer_share_the_units_of_a_suite() -> None:
    asked = {"evaluate.suites": {"swuggy": {}}}
    plan = plan_of(swept(recipe(**asked), **{"model.init": ["twist", "cold"]}))
    stages = [i.stage for i in plan.instances]
    assert (stages.count("suite_units"), stages.count("suite_scores")) == (1, 2)
    plan = plan_of(swept(recipe(**asked), **{"tokenizer.num_clusters": [8, 16]}))
    units = [i for i in plan.instances if i.stage == "suite_units"]
    assert [i.leader for i in units] == [units[0].id] * 2, "one pass of the encoder for both"
    exact = keys_of(plan_of(recipe(**asked, **{"encoder.precision": "bf16"})))
    assert exact["suite_units.swuggy"] != suites(swuggy={})["suite_units.swuggy"]


def test_a_suite_that_is_none_is_refused() -> None:
    with pytest.raises(SpecErrors, match=r"suites\.words\.kind: missing; give one of swuggy, "):
        recipe(**{"evaluate.suites": {"words": {}}})


def test_a_pretrained_encoder_depends_on_its_corpus() -> None:
    base, other = pretrained_recipe(), pretrained_recipe(**{"corpus.data_fraction": 0.5})
    assert changed(base, other) == after("corpus", base)


def test_no_field_of_the_recipe_was_forgotten_here() -> None:
    known = {name for name, _, _ in FIELDS} | {"sweep", "encoder.pretrain"}
    known |= {"evaluate.unit_quality"}
    known |= {f"encoder.pretrain.{name}" for name, _, _ in PRETRAIN_FIELDS}
    fields = {*_leaves(recipe().model_dump()), *_leaves(pretrained_recipe().model_dump())}
    assert fields - {"corpus.sources"} == known - {"corpus.sources"}


def _leaves(value: dict[str, Any], prefix: str = "") -> set[str]:
    leaves = set()
    for name, part in value.items():
        inner = isinstance(part, dict) and part
        leaves |= _leaves(part, f"{prefix}{name}.") if inner else {f"{prefix}{name}"}
    return leaves


def test_unpinned_by_digest_the_name_and_revision_count() -> None:
    pin = {"model.sha256": None, "model.revision": "abc"}
    base = recipe(**pin)
    assert changed(base, recipe(**pin, **{"model.text_model": "other"})) == after("train")
    assert changed(base, recipe(**{**pin, "model.revision": "def"})) == after("train")
    pin = {"encoder.sha256": None, "encoder.revision": "abc"}
    base = recipe(**pin)
    assert changed(base, recipe(**{**pin, "encoder.revision": "def"})) == after("encoder")
    assert changed(base, recipe(**pin, **{"encoder.model": "other"})) == after("encoder")


def test_other_recordings_under_the_same_name_are_another_corpus() -> None:
    other = plan_of(recipe(), facts=Facts(listings={"speech": "d" * 64}))
    assert keys_of(plan_of(recipe()))["corpus"] != keys_of(other)["corpus"]


def test_a_listing_of_another_source_changes_nothing() -> None:
    facts = Facts(listings={**FACTS.listings, "music": "d" * 64})
    assert keys_of(plan_of(recipe(), facts=facts)) == keys_of(plan_of(recipe()))


def test_a_whole_number_and_its_float_are_the_same_value() -> None:
    assert (
        changed(recipe(**{"tokenizer.fit_hours": 3}), recipe(**{"tokenizer.fit_hours": 3.0})) == []
    )
    assert changed(recipe(**{"train.steps": 100}), recipe(**{"train.steps": 1e2})) == []


TWO = {"corpus.sources": [{"name": "talks"}, {"name": "books"}]}


@pytest.mark.parametrize(
    ("mixture", "ratio"),
    [
        ({"books": 1, "talks": 3}, {"talks": 3, "books": 1}),
        ({"books": 0.25, "talks": 0.75}, {"talks": 3, "books": 1}),
        ({"books": 2e-3, "talks": 6e-3}, {"talks": 3, "books": 1}),
        ({"books": 0.1, "talks": 0.7}, {"talks": 7, "books": 1}),
        ({"books": 960.5, "talks": 1921}, {"talks": 2, "books": 1}),
    ],
)
def test_the_ratio_of_a_mixture_decides(mixture: dict[str, float], ratio: dict[str, int]) -> None:
    """In the order of the sources; what packs them asks for no ratio."""
    mixed, alike = recipe(**TWO, mixture=mixture), recipe(**TWO, mixture={"books": 5, "talks": 5})
    assert list(mixed.mixture_ratio.items()) == list(ratio.items())
    assert changed(mixed, recipe(**TWO, mixture=ratio)) == []
    assert changed(mixed, alike) == after("train")
    assert changed(recipe(**TWO), alike) == after("pack")


def test_a_default_written_out_is_the_same_as_left_out() -> None:
    assert changed(recipe(), recipe(**{"train.schedule.kind": "inverse_sqrt", "seed": 0})) == []


def test_the_recipes_keep_their_keys(golden: Callable[[str, str], None]) -> None:
    """Up to the training, these are the keys that stores out there hold."""
    keys = {}
    for path in sorted((ROOT / "recipes").glob("*.yaml")):
        recipe = load_recipe(path)
        facts = Facts(listings=dict.fromkeys((s.name for s in recipe.corpus.sources), "c" * 64))
        plan = plan_of(recipe, facts=facts)
        keys[path.name] = {
            v["name"]: {n: plan.instance(i).key for n, i in v["instances"].items() if n in MAIN}
            for v in plan.variants
        }
    golden("keys.json", json.dumps(keys, indent=1, sort_keys=True) + "\n")


class Newer(Spec):
    """A section as it may look one day."""

    steps: int
    lr: float = 0.1
    names: tuple[str, ...] = ()
    windows: Windows = Windows()


def test_a_field_at_its_default_is_left_out() -> None:
    assert keyed(Newer(steps=1)) == keyed(Newer(steps=1, lr=0.1, windows=Windows())) == {"steps": 1}
    changed = Newer(steps=1, lr=0.2, names=("a",), windows=Windows(max_s=9))
    assert keyed(changed) == {
        "steps": 1, "lr": 0.2, "names": ["a"], "windows": {"min_s": 0.4, "max_s": 9.0},
    }  # fmt: skip


@pytest.mark.parametrize(
    "section", [Corpus, Pretrain, Split, Model, Optimizer, Schedule, Perplexity, Continuations]
)
def test_a_new_field_at_its_default_changes_no_key(section: type[Spec]) -> None:
    """For each section that is keyed as a whole; the name is what old fields are known by."""
    used = recipe(), pretrained_recipe().encoder.pretrain
    (old,) = [value for one in used if one for value in _sections(one) if type(value) is section]
    newer = create_model(section.__name__, __base__=section, more=(int, 3))
    kept, more = (newer.model_validate({**old.model_dump(), "more": n}) for n in (3, 4))
    assert canonical_json(keyed(kept)) == canonical_json(keyed(old))
    assert keyed(more) == {**keyed(old), "more": 4}


@pytest.mark.parametrize("stage", ["targets", "pretrain"])
def test_a_null_of_pretraining_at_its_default_changes_no_key(stage: str) -> None:
    base = pretrained_recipe()
    old = base.encoder.pretrain
    assert old
    newer = create_model("Pretrain", __base__=Pretrain, max_hours=(float | None, None))
    said = old.model_dump(exclude={"max_hours"})
    silent, null = (newer.model_validate(said | more) for more in ({}, {"max_hours": None}))
    fields = [
        inputs_of(BY_NAME[stage], "1", _with_pretrain(base, section), FACTS, {})
        for section in (silent, null)
    ]
    assert fields[0] == fields[1]


def _with_pretrain(base: Recipe, section: Spec) -> Recipe:
    encoder = base.encoder.model_copy(update={"pretrain": section})
    return base.model_copy(update={"encoder": encoder})


def _sections(value: Any) -> Iterator[Spec]:
    if isinstance(value, Spec):
        yield value
        for _, part in value:
            yield from _sections(part)


def test_the_defaults_that_keys_do_not_spell(golden: Callable[[str, str], None]) -> None:
    """Another default is another result under the same key, unless its stage's version rises."""
    sections = (Perplexity(), Continuations())
    said = {type(s).__name__: s.model_dump(mode="json") for s in sections}
    assert all(keyed(section) == {} for section in sections)
    golden("key_defaults.json", json.dumps(said, indent=1) + "\n")


def test_a_stage_version_is_part_of_the_key() -> None:
    inputs = inputs_of(BY_NAME["pack"], "", recipe(), FACTS, {"tokenize": "e" * 64})
    assert key_of(inputs) != key_of({**inputs, "version": inputs["version"] + 1})


def test_canonical_json_has_one_spelling() -> None:
    assert canonical_json({"b": [1, 2.5], "a": "é"}) == b'{"a":"\\u00e9","b":[1,2.5]}'
    assert canonical_json({"a": 1, "b": 2}) == canonical_json({"b": 2, "a": 1})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_canonical_json_refuses_what_json_cannot_say(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": value})


def test_the_key_of_nothing_is_known() -> None:
    assert key_of({}) == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def test_flatten_goes_into_lists_of_mappings_only() -> None:
    value = {"a": {"b": [1, 2]}, "c": [{"d": 3}, {"d": 4}], "e": {}}
    assert flatten(value) == {"a.b": [1, 2], "c.0.d": 3, "c.1.d": 4}


def test_changes_name_the_input_and_shorten_digests() -> None:
    old = {"fields": {"x": {"lr": 0.1}}, "upstream": {"pack": "a" * 64}}
    new = {"fields": {"x": {"lr": 0.2}}, "upstream": {"pack": "b" * 64}}
    assert changes(old, new) == ("x.lr: 0.1 -> 0.2", f"upstream.pack: {'a' * 12} -> {'b' * 12}")
    assert changes(old, old) == ()
    assert changes({"a": 1}, {"b": None}) == ("a: 1 -> not set", "b: not set -> null")


def test_nearest_changes_compares_with_the_most_similar() -> None:
    new = {"a": 1, "b": 2, "c": 3}
    assert nearest_changes(new, [{"a": 9, "b": 9, "c": 9}, {"a": 1, "b": 2, "c": 4}]) == (
        "c: 4 -> 3",
    )
    assert nearest_changes(new, []) == ()


def test_what_differs_in_most_inputs_is_not_near() -> None:
    new = {"a": 1, "b": 2, "c": 3, "d": 4}
    assert nearest_changes(new, [{**new, "a": 9}]) == ("a: 9 -> 1",)
    assert nearest_changes(new, [{**new, "a": 9, "b": 9}]) == ()
    many = {str(n): n for n in range(100)}
    assert len(nearest_changes(many, [{**many, **dict.fromkeys("1234", -1)}])) == 4
    assert nearest_changes(many, [{**many, **dict.fromkeys("12345", -1)}]) == ()
    made_of = [{"upstream": {"pack": letter, "train": letter}, "version": 1} for letter in "ab"]
    assert len(nearest_changes(made_of[0], made_of[1:])) == 2
