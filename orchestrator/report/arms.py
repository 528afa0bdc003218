"""Warm against cold: the best variant of each arm, and the sentence that the intervals allow.

In: the variants of a run with their ``scores.json``. Out: `Comparison`, one for each set of
variants that may be compared at all: the same test units, architecture and training budget. A
variant's *setting* is everything swept but the seed; the best setting of an arm is chosen by its
mean validation NLL over seeds and reported on test, where the interval of an arm spans those of all
its seeds. Which arm is better is a matter of their paired difference on the test utterances
(`report.paired`). Where NLL by utterance cannot be read, two intervals that do not touch differ by
more than the choice of utterances explains; when they touch, nothing is claimed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.report.over_seeds import geometric_mean_95
from orchestrator.report.paired import Difference, PairedScores
from orchestrator.report.paired_suites import SuiteDifference, suite_differences
from orchestrator.report.record import Measure, Point, Record, VariantRecord
from orchestrator.spec.cluster import RETIRED

ARMS = ("warm", "cold")
_ARM_KEYS = ("model.init", "seed")
"""Overrides that are no part of a setting."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """The best setting of one arm."""

    name: str
    setting: str
    """Its overrides, seed and init left out; ``""`` when nothing else was swept."""
    variants: tuple[str, ...]
    """One a seed."""
    num_settings: int
    """Settings it was chosen from."""
    test: Measure


@dataclass(frozen=True, kw_only=True)
class Convergence:
    """How soon the warm arm was where the cold one ended, by validation loss, over the seeds."""

    ratios: tuple[float, ...]
    """Updates that warm needed for cold's last loss, over cold's updates; one a seed of both that
    got there."""
    num_never: int
    """Seeds with which warm did not get there; a mean over the others would leave out the worst,
    so that none is given."""

    @property
    def short(self) -> str:
        """``0.25``, the geometric mean over seeds, or with how many of them it never was."""
        if self.num_never:
            return self._never
        return f"{statistics.geometric_mean(self.ratios):.2f}"

    @property
    def text(self) -> str:
        """``0.25``, or the range over seeds with their mean and its interval, if all got there."""
        ends = sorted(self.ratios)
        span = " to ".join(dict.fromkeys(f"{end:.2f}" for end in (*ends[:1], *ends[-1:])))
        if self.num_never:
            others = f", with the others after {span} of cold's updates" if ends else ""
            return f"{self._never}{others}"
        if " to " not in span:
            return span
        mean, (low, high) = geometric_mean_95(self.ratios)
        seeds = f"over {len(self.ratios)} seeds"
        return f"{span} (mean {mean:.2f} [{low:.2f}, {high:.2f}], 95 % {seeds})"

    @property
    def _never(self) -> str:
        num_seeds = self.num_never + len(self.ratios)
        return "never" if num_seeds == 1 else f"never with {self.num_never} of {num_seeds} seeds"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Variants that may be compared."""

    label: str
    """What they share: units, architecture, training budget."""
    variants: tuple[VariantRecord, ...]
    arms: Mapping[str, Arm]
    """By name; an arm without scores is not there."""
    sentences: tuple[str, ...]
    """The comparison, and what limits it."""
    paired: Difference | None = None
    """Warm less cold on the test utterances, where NLL by utterance can be read."""
    convergence: Convergence | None = None
    """None where no seed has validation losses of both arms."""
    suites: tuple[SuiteDifference, ...] = ()
    """Warm less cold in the suites that both have scored."""

    @property
    def best(self) -> set[str]:
        """Names of the variants of each arm's best setting."""
        return {name for arm in self.arms.values() for name in arm.variants}


def measure(variant: VariantRecord, split: str, model: str = "model") -> Measure | None:
    """What ``scores.json`` says of the model, or of a baseline; None when it says nothing."""
    return variant.scores.splits.get(split, {}).get(model)


def baseline(variants: Iterable[VariantRecord], name: str, split: str) -> Measure | None:
    """A counting baseline: it depends on the units alone, so any variant's scores have it."""
    return next((m for v in variants if (m := measure(v, split, name))), None)


def comparisons(record: Record) -> tuple[Comparison, ...]:
    """Every set of comparable variants, in the order of the plan."""
    scores = PairedScores()
    return tuple(_comparison_of(label, vs, record, scores) for label, vs in _comparable(record))


def best_variants(record: Record) -> set[str]:
    """Names of the variants of the best setting of each arm, in every set of comparable ones."""
    arms = (arm for _, variants in _comparable(record) for arm in _arms(variants).values())
    return {name for arm in arms for name in arm.variants}


def _comparable(record: Record) -> list[tuple[str, list[VariantRecord]]]:
    """Label and variants of each set that may be compared."""
    groups: dict[tuple[str, str | None], list[VariantRecord]] = {}
    for variant in record.variants:
        group = _budget(variant), variant.instances.get("pack")
        groups.setdefault(group, []).append(variant)
    return [(label, variants) for (label, _), variants in groups.items()]


def _arms(variants: Sequence[VariantRecord]) -> dict[str, Arm]:
    best = {name: _best([v for v in variants if v.arm == name], name) for name in ARMS}
    return {name: arm for name, arm in best.items() if arm}


def _budget(variant: VariantRecord) -> str:
    if variant.recipe is None:
        return "recipe unknown"
    recipe, model, train = variant.recipe, variant.recipe.model, variant.recipe.train
    layers = f", first {model.num_layers} layers" if model.num_layers else ""
    rate, languages = recipe.encoder.frame_rate_hz, ", ".join(recipe.corpus.languages)
    units = f"{recipe.tokenizer.num_clusters} units at {rate:g} Hz of {languages}"
    budget = f"{train.steps:,} steps of {train.global_batch_tokens:,} tokens"
    share = recipe.split.train_fraction
    of_all = f", {100 * share:g} % of the training split" if share < 1 else ""
    return f"{units}; {model.text_model}{layers}; {budget}{of_all}"


def _comparison_of(
    label: str, variants: Sequence[VariantRecord], record: Record, scores: PairedScores
) -> Comparison:
    arms = _arms(variants)
    paired = convergence = None
    unpaired: tuple[str, ...] = ()
    suites: tuple[SuiteDifference, ...] = ()
    if len(arms) == len(ARMS):
        warm, cold = ([v for v in variants if v.name in arms[name].variants] for name in ARMS)
        paired, convergence = scores.between(warm, cold), converged(warm, cold)
        unpaired = () if paired else _unpaired([*warm, *cold], scores)
        suites = suite_differences(*([(record, v) for v in side] for side in (warm, cold)))
    return Comparison(
        label=label,
        variants=tuple(variants),
        arms=arms,
        sentences=(
            *_sentences(arms, variants, paired, convergence),
            *_against_bigram(arms, variants, scores),
            *unpaired,
        ),
        paired=paired,
        convergence=convergence,
        suites=suites,
    )


def _unpaired(variants: Sequence[VariantRecord], scores: PairedScores) -> tuple[str, ...]:
    """Why the arms were not compared on the same utterances: a sentence."""
    names: dict[str, list[str]] = {}
    for variant in variants:
        if problem := scores.problem_of(variant):
            names.setdefault(problem, []).append(variant.name)
    said = [f"{', '.join(them)}: {problem}" for problem, them in names.items()]
    why = "; ".join(said) or "they share fewer than two scored utterances"
    return (f"The arms are not paired by utterance: {why}.",)


def _best(variants: Iterable[VariantRecord], name: str) -> Arm | None:
    settings: dict[str, list[tuple[VariantRecord, Measure, Measure]]] = {}
    for variant in variants:
        valid, test = measure(variant, "valid"), measure(variant, "test")
        if valid and test:
            settings.setdefault(_setting(variant), []).append((variant, valid, test))
    if not settings:
        return None
    # A tie goes to the setting that the recipe names first.
    chosen = min(settings, key=lambda s: _mean_nll([valid for _, valid, _ in settings[s]]))
    return Arm(
        name=name,
        setting=chosen,
        variants=tuple(v.name for v, _, _ in settings[chosen]),
        num_settings=len(settings),
        test=_pooled([test for _, _, test in settings[chosen]]),
    )


def _setting(variant: VariantRecord) -> str:
    swept = {key: value for key, value in variant.overrides.items() if key not in _ARM_KEYS}
    return ", ".join(f"{key}={value}" for key, value in swept.items())


def _mean_nll(measures: Sequence[Measure]) -> float:
    return sum(math.log(m.perplexity) for m in measures) / len(measures)


def _pooled(seeds: Sequence[Measure]) -> Measure:
    """The geometric mean over seeds, in the widest interval that any of them reaches."""
    intervals = [m.perplexity_95 for m in seeds if m.perplexity_95]
    widest = None
    if len(intervals) == len(seeds):
        widest = min(low for low, _ in intervals), max(high for _, high in intervals)
    return Measure(perplexity=math.exp(_mean_nll(seeds)), perplexity_95=widest)


def _sentences(
    arms: Mapping[str, Arm],
    variants: Sequence[VariantRecord],
    paired: Difference | None,
    convergence: Convergence | None,
) -> tuple[str, ...]:
    if len(arms) < len(ARMS):
        return (_one_sided(arms, variants),)
    warm, cold = arms["warm"], arms["cold"]
    num_waiting = sum(measure(v, "test") is None for v in variants)
    return (
        _comparison(warm, cold, num_waiting, paired),
        _choice(warm, cold),
        _seeds(warm, cold),
        *_catching_up(warm, cold, variants, convergence),
    )


def _one_sided(arms: Mapping[str, Arm], variants: Sequence[VariantRecord]) -> str:
    if not arms:
        is_scored = any(v.instances.keys() & {"perplexity", RETIRED} for v in variants)
        return f"No variant has test scores{' yet' if is_scored else ': the run makes none'}."
    (name, arm), other = next(iter(arms.items())), ARMS[1 - ARMS.index(next(iter(arms)))]
    asked = any(v.arm == other for v in variants)
    why = f"the {other} arm has no scores yet" if asked else f"the run has no {other} arm"
    figure = f"{name.capitalize()} start: test perplexity {arm.test.text}"
    return f"{figure}; {why}, so nothing can be compared."


def _comparison(warm: Arm, cold: Arm, num_waiting: int, paired: Difference | None) -> str:
    lead = f"So far, with {num_waiting} variants not scored yet" if num_waiting else "In this run"
    figures = f"test perplexity {warm.test.text} warm, {cold.test.text} cold"
    better, worse = sorted((warm, cold), key=lambda arm: arm.test.perplexity)
    if paired:
        return f"{lead}, {_claim(better, worse, paired, figures)}"
    if not better.test.perplexity_95 or not worse.test.perplexity_95:
        return f"{lead}, no difference can be claimed: {figures}, and no 95 % intervals."
    if better.test.perplexity_95[1] >= worse.test.perplexity_95[0]:
        return f"{lead}, no difference can be claimed: {figures}; the 95 % intervals overlap."
    return (
        f"{lead}, {better.name} start is better: {figures}, {_percent_lower(better, worse)}; "
        "the 95 % intervals do not overlap."
    )


def _claim(better: Arm, worse: Arm, paired: Difference, figures: str) -> str:
    by = f"{paired.text} on {paired.num_utterances:,} test utterances, paired (95 %)"
    if not paired.excludes_zero:
        return f"no difference can be claimed: {figures}; warm less cold is {by}, which holds 0."
    less = _percent_lower(better, worse)
    return f"{better.name} start is better: {figures}, {less}; warm less cold is {by}."


def _percent_lower(better: Arm, worse: Arm) -> str:
    return f"{100 * (1 - better.test.perplexity / worse.test.perplexity):.1f} % lower"


def _choice(warm: Arm, cold: Arm) -> str:
    if warm.num_settings == cold.num_settings == 1:
        return "One setting an arm: nothing was tuned in this run."
    settings = "; ".join(f"{a.name}: {a.setting}, out of {a.num_settings}" for a in (warm, cold))
    chosen = f"Each arm's setting was chosen on the validation split ({settings})"
    if warm.num_settings == cold.num_settings:
        return f"{chosen} and is reported on test."
    return f"{chosen} and is reported on test; the arms were not tuned equally."


def _seeds(warm: Arm, cold: Arm) -> str:
    num_seeds, most = sorted((len(warm.variants), len(cold.variants)))
    if num_seeds == 1 < most:
        return (
            f"One arm has {most} training seeds and the other a single one, which is taken to vary "
            "as they do; at least three seeds an arm are needed for a general claim."
        )
    if num_seeds == 1:
        return (
            "One training seed an arm: the interval covers the choice of test utterances, not that "
            "of weights and data order; at least three seeds are needed for a general claim."
        )
    return (
        f"At least {num_seeds} training seeds an arm; each interval spans those of all its seeds."
    )


def converged(warm: Sequence[VariantRecord], cold: Sequence[VariantRecord]) -> Convergence | None:
    """The convergence ratio of variants of both arms, over the seeds that both have.

    Between two validations the loss is taken to fall straight. None where nothing can be said.
    """
    found = [_ratio(w, c) for w, c in _curves_by_seed(warm, cold)]
    if not found:
        return None
    ratios = tuple(ratio for ratio in found if ratio is not None)
    return Convergence(ratios=ratios, num_never=len(found) - len(ratios))


def _curves_by_seed(
    warm: Iterable[VariantRecord], cold: Iterable[VariantRecord]
) -> list[tuple[Sequence[Point], Sequence[Point]]]:
    """Validation of both arms for each seed of both, where warm has any and cold has a last one."""
    theirs = {_seed(variant): variant.validation for variant in cold}
    pairs = [(variant.validation, theirs.get(_seed(variant), ())) for variant in warm]
    return [(w, c) for w, c in pairs if w and c and math.isfinite(c[-1][1])]


def _seed(variant: VariantRecord) -> Any:
    return variant.recipe.seed if variant.recipe else variant.overrides.get("seed")


def _ratio(warm: Sequence[Point], cold: Sequence[Point]) -> float | None:
    """Where the first curve gets as low as the second ends, over its steps; None: never."""
    last_step, goal = cold[-1]
    before: Point | None = None
    for step, loss in warm:
        if not math.isfinite(loss):
            continue
        if loss <= goal:
            if before is None:
                return step / last_step
            share = (before[1] - goal) / (before[1] - loss)
            return (before[0] + share * (step - before[0])) / last_step
        before = step, loss
    return None


def _catching_up(
    warm: Arm,
    cold: Arm,
    variants: Sequence[VariantRecord],
    convergence: Convergence | None,
) -> tuple[str, ...]:
    """How soon the warm arm was where the cold one ended, by their validation losses."""
    if convergence is None:
        return ()
    if convergence.num_never:
        return (f"On validation, warm has cold's last loss {convergence.text}.",)
    curves = ([v for v in variants if v.name in arm.variants] for arm in (warm, cold))
    warm_curve, cold_curve = _curves_by_seed(*curves)[0]
    last_step, goal = cold_curve[-1]
    reached = next((step for step, loss in warm_curve if loss <= goal), None)
    if reached is None or reached >= last_step:
        return ()
    return (
        f"On validation, warm has cold's last loss ({goal:.3f}, step {last_step:,}) by step "
        f"{reached:,}; validated only at the steps that the curve marks. Between them the loss is "
        f"taken to fall straight: warm needs {convergence.text} of cold's updates.",
    )


def _against_bigram(
    arms: Mapping[str, Arm], variants: Sequence[VariantRecord], scores: PairedScores
) -> tuple[str, ...]:
    """How each arm compares with counting pairs of units; on the same utterances where they are."""
    bigram = baseline(variants, "bigram", "test")
    if bigram is None or not arms:
        return ()
    paired = {
        name: scores.against_pairs([v for v in variants if v.name in arm.variants])
        for name, arm in arms.items()
    }
    said = [_against_pairs(name, gap, bigram) for name, gap in paired.items() if gap]
    losers = [n for n in arms if not paired[n] and arms[n].test.perplexity >= bigram.perplexity]
    if losers:
        is_both = len(losers) == len(ARMS)
        who = "Neither arm beats" if is_both else f"The {losers[0]} arm does not beat"
        said.append(
            f"{who} counting pairs of units: the bigram baseline has perplexity {bigram.text}."
        )
    unigram = baseline(variants, "unigram", "test")
    if unigram and unigram.perplexity < bigram.perplexity:
        said.append(
            f"Counting single units does better than counting pairs here, with perplexity "
            f"{unigram.text}: there is too little speech to count pairs in."
        )
    return tuple(said)


def _against_pairs(name: str, gap: Difference, bigram: Measure) -> str:
    by = (
        f"{gap.text} on {gap.num_utterances:,} test utterances, paired (95 %); counting has "
        f"perplexity {bigram.text}"
    )
    if not gap.excludes_zero:
        return (
            f"Between the {name} arm and counting pairs of units no difference can be claimed: "
            f"{name} less counting is {by}."
        )
    verdict = "beats" if gap.value < 0 else "does not beat"
    return f"The {name} arm {verdict} counting pairs of units: {name} less counting is {by}."
