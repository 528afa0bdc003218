"""The model card of an exported model: what it is, on which units, trained on what, its scores.

In: the record of its run, one of its variants, and what ``units.json`` says. Out: Markdown with the
front matter that a model hub reads (huggingface.co/docs/hub/model-cards).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.quantities import format_duration
from orchestrator.report.facts import suite_rows, unit_measures
from orchestrator.report.record import Record, StageRecord, VariantRecord
from orchestrator.spec.recipe import Encoder, Model, Recipe


def model_card(
    record: Record, variant: VariantRecord, recipe: Recipe, units: Mapping[str, Any]
) -> str:
    """The card; ``recipe`` is the variant's."""
    own = [s for s in record.stages if s.instance.id in variant.instances.values()]
    return str(
        _template().render(
            title=f"{record.plan.recipe}, {variant.name}"
            if variant.overrides
            else record.plan.recipe,
            recipe=recipe,
            units=units,
            encoder=encoder_text(recipe.encoder),
            waves="normalised to mean 0 and variance 1"
            if units["normalize_waveform"]
            else "as they are",
            training=training_rows(recipe, {s.instance.stage: s for s in own}),
            scores=variant.scores.splits,
            quality=[s for s in record.of_stage("unit_quality") if s in own and s.facts],
            suites=[s for s in record.of_stage("suite_scores") if s in own and s.facts],
            run=record.plan.run,
            variant=variant.name,
            code=record.code,
            lineage=[s for s in own if s.is_complete],
        )
    )


def encoder_text(encoder: Encoder) -> str:
    """Which encoder it was."""
    if encoder.pretrain:
        return "pretrained by the recipe, in `encoder/`"
    return f"`{encoder.model}`{pin(encoder)}"


def pin(model: Encoder | Model) -> str:
    """At which commit, or which weights."""
    if model.revision:
        return f" at `{model.revision[:12]}`"
    return f" with weights of sha256 `{model.sha256}`" if model.sha256 else ""


def training_rows(recipe: Recipe, stages: Mapping[str, StageRecord]) -> Sequence[tuple[str, str]]:
    """What it was trained on and how, as far as the stages have told."""
    facts = stages["train"].facts
    splits = stages["pack"].facts.get("splits", {})
    rows = []
    if trained := splits.get("train"):
        audio = format_duration(trained["num_samples"] / 16_000)
        rows.append(("trained on", f"{audio}, {trained['num_tokens']:,} units"))
    rows += [
        ("steps", f"{recipe.train.steps:,} of {recipe.train.global_batch_tokens:,} units"),
        ("context", f"{recipe.train.context_length:,} units"),
        ("optimizer", f"AdamW, peak learning rate {recipe.train.optimizer.lr:g}"),
        ("schedule", f"{recipe.train.schedule.kind}, {recipe.train.precision}"),
    ]
    if "num_parameters" in facts:
        rows.append(("parameters", f"{facts['num_parameters']:,}"))
    return rows


@functools.cache
def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )  # Markdown for people and hubs, which is no page of ours
    environment.globals |= {"unit_measures": unit_measures, "pin": pin, "suite_rows": suite_rows}
    return environment.from_string(
        (Path(__file__).parent / "model_card.md").read_text(encoding="utf-8")
    )
