"""Several runs beside each other: scores, paired differences, recipes, time and cost, curves.

In: the records of runs. Out: `Systems`, a trained model each, and what the page says of them. The
first run is what the others are compared with. Perplexity compares models of the same units alone;
NLL per second of audio is shown for models of other units on the same speech, and ranks none of
them, since fewer units or frames lower it by themselves.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import RequestError
from orchestrator.ledger.goodput import PART_NAMES, shares_percent
from orchestrator.ledger.spending import spending_figures
from orchestrator.plan.keys import flatten
from orchestrator.quantities import SAMPLE_RATE_HZ, format_duration
from orchestrator.report.arms import best_variants, measure
from orchestrator.report.facts import suite_rows
from orchestrator.report.paired import Difference, PairedScores, difference, have_same_tokens
from orchestrator.report.paired_suites import SuiteDifference, suite_differences
from orchestrator.report.plots import Figure, Line, Panel, figure_of, running_mean, styles_of
from orchestrator.report.record import Point, Record, StageRecord, VariantRecord

_ABSENT = "-"
_NAMES_OF_RECIPES = ("name",)
"""What may differ between recipes and says nothing."""
_MAX_NAMES = 8
_MAX_SHOWN, _SHOWN_BEFORE = 60, 20
"""Characters of a recipe's value, and how many of them from before the place of a difference."""


@dataclass(frozen=True, kw_only=True)
class System:
    """One trained model of one of the runs."""

    label: str
    """The run's name, and the variant's where the run shows several."""
    record: Record
    variant: VariantRecord

    @property
    def codebook(self) -> str:
        """Key of the codebook whose units it models; empty where it is not known."""
        return self.variant.instances.get("codebook", "").rpartition("-")[2]

    @property
    def units(self) -> str:
        """Which units it models: those of a codebook, a run of one once or in full.

        Empty where it is not known.
        """
        recipe = self.variant.recipe
        if recipe is None or not self.codebook:
            return ""
        return self.codebook if recipe.tokenizer.deduplicate else f"{self.codebook} in full"

    @property
    def units_text(self) -> str:
        """``500 units, 19.1 tokens/s``."""
        recipe = self.variant.recipe
        size = f"{recipe.tokenizer.num_clusters} units" if recipe else "units unknown"
        if recipe and not recipe.tokenizer.deduplicate:
            size += ", repeats kept"
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
    def tokens_per_step(self) -> float | None:
        """Of its training, by the recipe or else by what it has seen; None where neither says."""
        if self.variant.recipe:
            return self.variant.recipe.train.global_batch_tokens
        match self._facts("train"):
            case {"steps": int(steps), "tokens_seen": int(tokens)} if steps:
                return tokens / steps
        return None

    @property
    def has_curves(self) -> bool:
        """Whether its training has left any."""
        return bool(self.variant.training or self.variant.validation)

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
    best = best_variants(record)
    return [v for v in trained if v.name in best or not best]


def sentences(shown: Sequence[System]) -> tuple[str, ...]:
    """What holds for the comparison as a whole."""
    waiting = [s.label for s in shown if measure(s.variant, "test") is None]
    unknown = [s.label for s in shown if not s.units]
    said = []
    if len({system.units for system in shown} - {""}) > 1:
        said.append(
            "These models have different units: perplexity per token says nothing across them, "
            "and NLL per second of audio falls with fewer units or frames by itself. Scores of "
            "suites rank them; what each has learnt is its distance from counting pairs of units."
        )
    if unknown:
        said.append(
            f"The units of {', '.join(unknown)} are not known: perplexity per token may say "
            "nothing across these models."
        )
    if _units_differ(shown) and (unmeasured := _without_rate(shown)):
        said.append(
            f"No curve of {', '.join(unmeasured)}: how many tokens a second of its speech has is "
            "not known."
        )
    said += _left_out(shown)
    if waiting:
        said.append(f"Not scored yet: {', '.join(waiting)}.")
    return tuple(said)


def _units_differ(shown: Sequence[System]) -> bool:
    """Whether they do or, for all that is known, may."""
    units = {system.units for system in shown}
    return len(shown) > 1 and (len(units) > 1 or "" in units)


def _without_rate(shown: Sequence[System]) -> list[str]:
    return [s.label for s in shown if s.has_curves and not s.tokens_per_audio_s]


def _left_out(shown: Sequence[System]) -> list[str]:
    """Which trained variants of each run are not shown."""
    names: dict[str, tuple[Record, set[str]]] = {}
    for s in shown:
        names.setdefault(s.record.run.storage.url, (s.record, set()))[1].add(s.variant.name)
    said = []
    for record, kept in names.values():
        trained = [v.name for v in record.variants if "train" in v.instances]
        if others := [name for name in trained if name not in kept]:
            more = f" and {len(others) - _MAX_NAMES} more" if len(others) > _MAX_NAMES else ""
            said.append(
                f"Of {record.run.name} only the best setting of each arm is shown; left out: "
                f"{'; '.join(others[:_MAX_NAMES])}{more}."
            )
    return said


def against_first(shown: Sequence[System], scores: PairedScores) -> tuple[Against, ...]:
    """Each system's difference from the first, on the test utterances that both have scored."""
    return tuple(_against(shown[0], other, scores) for other in shown[1:])


def _against(first: System, other: System, scores: PairedScores) -> Against:
    theirs, ours = scores.of(first.variant), scores.of(other.variant)
    if theirs is None or ours is None:
        problems = {s.label: scores.problem_of(s.variant) for s in (first, other)}
        remark = "; ".join(f"{label}: {problem}" for label, problem in problems.items() if problem)
        return Against(label=other.label, difference=None, remark=remark)
    same_tokens = _may_share_units(first, other) and have_same_tokens(ours, theirs)
    found = difference([ours], [theirs], same_tokens=same_tokens)
    if found is None:
        remark = "they share fewer than two scored utterances, so that nothing is paired"
        return Against(label=other.label, difference=None, remark=remark)
    return Against(label=other.label, difference=found, remark=_verdict(found))


def _may_share_units(one: System, other: System) -> bool:
    """Whether both have one codebook, and are not known to keep repeats and to drop them."""
    return "" != one.codebook == other.codebook and len({one.units, other.units} - {""}) <= 1


def _verdict(found: Difference) -> str:
    if not found.excludes_zero:
        return "no difference can be claimed: the interval holds 0"
    if found.measure != "nats per token":
        less = "lower" if found.value < 0 else "higher"
        return f"{less} than the first; other units, which shift it by themselves: this ranks none"
    who = "better" if found.value < 0 else "worse"
    if found.perplexity_ratio is None:
        return f"{who} than the first, by {abs(found.value):.3f} {found.measure}"
    percent = abs(100 * (found.perplexity_ratio - 1))
    less = "lower" if found.value < 0 else "higher"
    return f"{who} than the first: perplexity {percent:.1f} % {less}"


def suites_against_first(
    shown: Sequence[System],
) -> tuple[tuple[str, tuple[SuiteDifference, ...]], ...]:
    """Each system's label, and its differences from the first in the suites that both scored."""
    first, *others = ([(system.record, system.variant)] for system in shown)
    labels = [system.label for system in shown[1:]]
    found = [suite_differences(other, first) for other in others]
    return tuple((label, own) for label, own in zip(labels, found, strict=True) if own)


def recipe_differences(shown: Sequence[System]) -> tuple[tuple[str, ...], ...]:
    """Dotted key and each system's value, for keys in which not all agree."""
    flat = [_flat(system) for system in shown]
    keys = sorted(set[str]().union(*flat))
    rows = {key: [_text_of(values.get(key)) for values in flat] for key in keys}
    return tuple((key, *_short(row)) for key, row in rows.items() if len(set(row)) > 1)


def _flat(system: System) -> dict[str, Any]:
    recipe = system.variant.recipe
    if recipe is None:
        return {}
    values = flatten(recipe.model_dump(mode="json", exclude={"sweep"}))
    return {key: value for key, value in values.items() if key not in _NAMES_OF_RECIPES}


def _text_of(value: Any) -> str:
    return _ABSENT if value is None else str(value)


def _short(texts: Sequence[str]) -> list[str]:
    """Long texts from a little before the place where they part on, so that they still do."""
    letters = zip(*(text for text in texts if text != _ABSENT), strict=False)
    parting = sum(1 for _ in itertools.takewhile(lambda at: len(set(at)) == 1, letters))
    first = max(0, parting - _SHOWN_BEFORE) if max(map(len, texts)) > _MAX_SHOWN else 0
    cut = (f"...{text[first:]}" if first else text for text in texts)
    return [t if len(t) <= _MAX_SHOWN else f"{t[: _MAX_SHOWN - 3]}..." for t in cut]


def suite_table(shown: Sequence[System]) -> tuple[tuple[str, ...], ...]:
    """Suite, split, figure and each system's score in percent [95 %]; a dash where it has none."""
    columns = [_suites_of(system) for system in shown]
    names = dict.fromkeys(name for column in columns for name in column)
    return tuple((*name, *(column.get(name, _ABSENT) for column in columns)) for name in names)


def _suites_of(system: System) -> dict[tuple[str, str, str], str]:
    own = set(system.variant.instances.values())
    return {
        (stage.suite_name, split, figure): score
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
        "artifacts taken over": f"{sum(s.status.is_reused for s in record.stages)}"
        f" of {len(record.stages)}",
    }
    return {name: text for name, text in rows.items() if text}


def overlaid(shown: Sequence[System]) -> list[Figure]:
    """Losses of all systems over the same axes, per token or, of different units, per second."""
    per_s = _units_differ(shown)
    drawn = [s for s in shown if s.has_curves and (s.tokens_per_audio_s or not per_s)]
    rates = [(s.tokens_per_audio_s or 1.0) if per_s else 1.0 for s in drawn]
    x_label, strides = _taken_in(drawn, rates, "seconds of audio" if per_s else "tokens")
    unit = "nats per second of audio" if per_s else "nats per token"
    styles = styles_of(system.label for system in drawn)
    training, validation = [], []
    for system, style, rate, stride in zip(drawn, styles, rates, strides, strict=True):
        variant = system.variant
        mean = running_mean(variant.training) if variant.training else []
        training.append(Line(style=style, points=_scaled(mean, stride, rate)))
        validation.append(Line(style=style, points=_scaled(variant.validation, stride, rate)))
    figure = Figure(
        name="losses",
        title="Loss",
        panels=(
            Panel(title="training loss", unit=unit, lines=tuple(training)),
            Panel(title="validation loss", unit=unit, lines=tuple(validation), is_marked=True),
        ),
        shares_scale=True,
        x_label=x_label,
    )
    kept = figure_of(figure)
    return [kept] if kept else []


def _scaled(curve: Iterable[Point], stride: float, rate: float) -> list[Point]:
    return [(round(step * stride), loss * rate) for step, loss in curve]


def _taken_in(
    drawn: Sequence[System], rates: Sequence[float], what: str
) -> tuple[str, Sequence[float]]:
    """What the level axis counts, and how much of it a step of each system is.

    Steps, where all take in as much with each, or it is not known of one.
    """
    amounts = [
        tokens / rate for s, rate in zip(drawn, rates, strict=True) if (tokens := s.tokens_per_step)
    ]
    if len(amounts) < len(drawn) or len({f"{amount:.6g}" for amount in amounts}) <= 1:
        return "step", [1.0] * len(drawn)
    return f"{what} seen", amounts
