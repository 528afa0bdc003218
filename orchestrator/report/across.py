"""Several runs beside each other: scores, paired differences, recipes, time and cost, curves.

In: the records of runs. Out: `Systems`, a trained model each, and what the page says of them. The
first run is what the others are compared with. Perplexity compares models of the same units alone;
NLL per second of audio compares models of any units on the same speech, since both tell how
unexpected the same sounds were.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import RequestError
from orchestrator.ledger.goodput import PART_NAMES, shares_percent
from orchestrator.ledger.spending import spending_figures
from orchestrator.plan.keys import flatten
from orchestrator.quantities import SAMPLE_RATE_HZ, format_duration
from orchestrator.report.arms import comparisons, measure
from orchestrator.report.facts import suite_rows
from orchestrator.report.paired import Difference, PairedScores, difference, have_same_tokens
from orchestrator.report.plots import Figure, Line, Panel, figure_of, running_mean, styles_of
from orchestrator.report.record import Point, Record, StageRecord, VariantRecord

_ABSENT = "-"
_NAMES_OF_RECIPES = ("name",)
"""What may differ between recipes and says nothing."""


@dataclass(frozen=True, kw_only=True)
class System:
    """One trained model of one of the runs."""

    label: str
    """The run's name, and the variant's where the run shows several."""
    record: Record
    variant: VariantRecord

    @property
    def units(self) -> str:
        """Key of the artifact that says which units it models; empty where it is not known."""
        return self.variant.instances.get("codebook", "").rpartition("-")[2]

    @property
    def units_text(self) -> str:
        """``500 units, 19.1 tokens/s``."""
        recipe = self.variant.recipe
        size = f"{recipe.tokenizer.num_clusters} units" if recipe else "units unknown"
        rate = self.tokens_per_audio_s
        return f"{size}, {rate:.1f} tokens/s" if rate else size

    @property
    def tokens_per_audio_s(self) -> float | None:
        """Tokens of a second of the speech that was held out for validation."""
        splits = self._facts("pack").get("splits")
        valid = splits.get("valid") if isinstance(splits, Mapping) else None
        match valid:
            case {"num_tokens": int(tokens), "num_samples": int(samples)} if samples:
                return tokens * SAMPLE_RATE_HZ / samples
        return None

    @property
    def tokens_per_step(self) -> int:
        """Of its training; 1 where the recipe is not known, so that steps are what is counted."""
        return self.variant.recipe.train.global_batch_tokens if self.variant.recipe else 1

    def training(self) -> StageRecord | None:
        """The instance that trained it."""
        return self._stage("train")

    def _stage(self, node: str) -> StageRecord | None:
        wanted = self.variant.instances.get(node)
        return next((s for s in self.record.stages if s.instance.id == wanted), None)

    def _facts(self, node: str) -> Mapping[str, Any]:
        stage = self._stage(node)
        return stage.facts if stage else {}


@dataclass(frozen=True, kw_only=True)
class Against:
    """One system compared with the first."""

    label: str
    difference: Difference | None
    remark: str
    """What the difference says, or why there is none."""


def systems(records: Sequence[Record]) -> tuple[System, ...]:
    """The models of some runs: of each arm its best setting, else whatever was trained.

    Raises RequestError for a run that is given twice, or that trains no language model.
    """
    urls = [record.run.storage.url for record in records]
    for record, url in zip(records, urls, strict=True):
        if urls.count(url) > 1:
            raise RequestError(f"{record.run.name}: given twice; name different runs")
    found: list[System] = []
    for record in records:
        shown = _shown(record)
        for variant in shown:
            label = record.run.name if len(shown) == 1 else f"{record.run.name} {variant.name}"
            found.append(System(label=label, record=record, variant=variant))
    return tuple(found)


def _shown(record: Record) -> list[VariantRecord]:
    trained = [v for v in record.variants if "train" in v.instances]
    if not trained:
        raise RequestError(
            f"{record.run.name}: trains no language model, so that it has no scores to compare; "
            "`orchestrator report` of it alone shows what it did"
        )
    best = set[str]().union(*(comparison.best for comparison in comparisons(record)))
    return [v for v in trained if v.name in best or not best]


def sentences(shown: Sequence[System]) -> tuple[str, ...]:
    """What holds for the comparison as a whole."""
    waiting = [s.label for s in shown if measure(s.variant, "test") is None]
    said = []
    if _units_differ(shown):
        said.append(
            "These models have different units: perplexity per token says nothing across them. "
            "NLL per second of audio does, on the same test speech."
        )
    if waiting:
        said.append(f"Not scored yet: {', '.join(waiting)}.")
    return tuple(said)


def _units_differ(shown: Sequence[System]) -> bool:
    return len({system.units for system in shown}) > 1


def against_first(shown: Sequence[System], scores: PairedScores) -> tuple[Against, ...]:
    """Each system's difference from the first, on the test utterances that both have scored."""
    return tuple(_against(shown[0], other, scores) for other in shown[1:])


def _against(first: System, other: System, scores: PairedScores) -> Against:
    theirs, ours = scores.of(first.variant), scores.of(other.variant)
    if theirs is None or ours is None:
        problems = {s.label: scores.problem_of(s.variant) for s in (first, other)}
        remark = "; ".join(f"{label}: {problem}" for label, problem in problems.items() if problem)
        return Against(label=other.label, difference=None, remark=remark)
    same_tokens = first.units == other.units and have_same_tokens(ours, theirs)
    found = difference([ours], [theirs], same_tokens=same_tokens)
    if found is None:
        remark = "they share fewer than two scored utterances, so that nothing is paired"
        return Against(label=other.label, difference=None, remark=remark)
    return Against(label=other.label, difference=found, remark=_verdict(found))


def _verdict(found: Difference) -> str:
    if not found.excludes_zero:
        return "no difference can be claimed: the interval holds 0"
    who = "better" if found.value < 0 else "worse"
    if found.perplexity_ratio is None:
        return f"{who} than the first, by {abs(found.value):.3f} {found.measure}"
    percent = abs(100 * (found.perplexity_ratio - 1))
    less = "lower" if found.value < 0 else "higher"
    return f"{who} than the first: perplexity {percent:.1f} % {less}"


def recipe_differences(shown: Sequence[System]) -> tuple[tuple[str, ...], ...]:
    """Dotted key and each system's value, for keys in which not all agree."""
    flat = [_flat(system) for system in shown]
    keys = sorted(set[str]().union(*flat))
    rows = ((key, *(_short(values.get(key)) for values in flat)) for key in keys)
    return tuple(row for row in rows if len(set(row[1:])) > 1)


def _flat(system: System) -> dict[str, Any]:
    recipe = system.variant.recipe
    if recipe is None:
        return {}
    values = flatten(recipe.model_dump(mode="json", exclude={"sweep"}))
    return {key: value for key, value in values.items() if key not in _NAMES_OF_RECIPES}


def _short(value: Any) -> str:
    if value is None:
        return _ABSENT
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def suite_table(shown: Sequence[System]) -> tuple[tuple[str, ...], ...]:
    """Suite, split, figure and each system's score in percent [95 %]; a dash where it has none."""
    columns = [_suites_of(system) for system in shown]
    names = dict.fromkeys(name for column in columns for name in column)
    return tuple((*name, *(column.get(name, _ABSENT) for column in columns)) for name in names)


def _suites_of(system: System) -> dict[tuple[str, str, str], str]:
    own = set(system.variant.instances.values())
    return {
        (str(stage.facts.get("suite")), split, figure): score
        for stage in system.record.of_stage("suite_scores")
        if stage.instance.id in own
        for split, figure, score, *_ in suite_rows(stage.facts)
    }


def effort_rows(shown: Sequence[System]) -> tuple[tuple[str, ...], ...]:
    """What each run took: a row a figure, a column a run; what a run does not know is a dash."""
    records = list({id(s.record): s.record for s in shown}.values())
    columns = [_effort(record) for record in records]
    names = dict.fromkeys(name for column in columns for name in column)
    return tuple((name, *(column.get(name, _ABSENT) for column in columns)) for name in names)


def _effort(record: Record) -> dict[str, str]:
    goodput = record.status.goodput
    ettr = goodput.get("ettr")
    trained = record.of_stage("train")
    attempts = [a for stage in record.stages for a in stage.attempts]
    failed = [a for a in attempts if a.status.state not in ("succeeded", "running")]
    speeds = [f"{a.tokens_per_s:,.0f}" for s in trained for a in s.attempts if a.tokens_per_s]
    mfus = [f"{100 * a.mfu:.1f} %" for s in trained for a in s.attempts if a.mfu]
    parts = ", ".join(
        f"{PART_NAMES[part]} {share:.0f} %"
        for part, share in shares_percent(goodput).items()
        if share >= 0.5
    )
    rows = {
        "state": record.status.state.value,
        "elapsed": format_duration(goodput.get("elapsed_s") or 0.0),
        "where the time went": parts,
        "ETTR": "" if ettr is None else f"{ettr:.2f}",
        "spent": ", ".join(spending_figures(record.status.spending)),
        "attempts": f"{len(attempts)}, {len(failed)} of them failed or lost",
        "training, median tokens/s": ", ".join(dict.fromkeys(speeds)),
        "training, median MFU": ", ".join(dict.fromkeys(mfus)),
        "artifacts taken over": f"{sum(not s.attempts for s in record.stages)}"
        f" of {len(record.stages)}",
    }
    return {name: text for name, text in rows.items() if text}


def overlaid(shown: Sequence[System]) -> list[Figure]:
    """Losses of all systems over the same axes, per token or, of different units, per second."""
    drawn = [s for s in shown if s.variant.training or s.variant.validation]
    styles = styles_of(system.label for system in drawn)
    per_s = _units_differ(drawn)
    if per_s:
        rows = [(s, style) for s, style in zip(drawn, styles, strict=True) if s.tokens_per_audio_s]
    else:
        rows = list(zip(drawn, styles, strict=True))
    by_tokens = len({system.tokens_per_step for system, _ in rows}) > 1
    unit = "nats per second of audio" if per_s else "nats per token"

    def points(system: System, curve: Iterable[Point]) -> list[Point]:
        rate = (system.tokens_per_audio_s or 1.0) if per_s else 1.0
        stride = system.tokens_per_step if by_tokens else 1
        return [(step * stride, loss * rate) for step, loss in curve]

    training = (
        Line(style=style, points=points(s, running_mean(s.variant.training)))
        for s, style in rows
        if s.variant.training
    )
    validation = (Line(style=style, points=points(s, s.variant.validation)) for s, style in rows)
    figure = Figure(
        name="losses",
        title="Loss",
        panels=(
            Panel(title="training loss", unit=unit, lines=tuple(training)),
            Panel(title="validation loss", unit=unit, lines=tuple(validation), is_marked=True),
        ),
        shares_scale=True,
        x_label="tokens seen" if by_tokens else "step",
    )
    kept = figure_of(figure)
    return [kept] if kept else []
