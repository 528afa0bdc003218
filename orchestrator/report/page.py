"""The report page: one HTML file that needs nothing else, and its short form for a terminal.

In: a run's folder, its store, and how it was observed. Out: ``report.html``, whose parts are put
together in `template`.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from orchestrator.errors import RequestError
from orchestrator.ledger.goodput import PART_NAMES, Interval, shares_percent, timeline
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.status import Observed, RunState
from orchestrator.ledger.store import Store
from orchestrator.plan.stages import BY_NAME
from orchestrator.quantities import format_duration
from orchestrator.report import published
from orchestrator.report.arms import baseline, comparisons, measure
from orchestrator.report.curves import NUM_RAW_CURVES, drawn, figures, window
from orchestrator.report.diagnostics import SIGNS, findings
from orchestrator.report.facts import (
    doubts,
    label,
    shown,
    split_rows,
    suite_rows,
    unit_measures,
    unit_quality,
    unit_verdict,
)
from orchestrator.report.plots import figure_svg
from orchestrator.report.record import AttemptRecord, Record, StageRecord, read_record
from orchestrator.report.template import Draw, render_page

PAGE = "report.html"
SECTIONS = {
    "scores": "Scores",
    "diagnostics": "Diagnostics",
    "curves": "Training",
    "speech": "Speech and tokens",
    "units": "Encoder and codebook",
    "time": "Time and throughput",
    "lineage": "Lineage",
    "recipe": "Recipe",
}
"""The page's parts by their anchor; what a run may lack is no part of its own."""
_BAR_CELLS = 360
_DULL_EVENTS = ("begin", "published")


def write_report(
    run: RunFolder, store: Store, observed: Observed, target: Path | None = None
) -> str:
    """Write the page into the run's folder, or to ``target``; returns where it is.

    Raises RequestError when there is no such run, or ``target`` cannot be written.
    """
    page = render(read_record(run, store, observed)).encode()
    if target is None:
        run.storage.replace(PAGE, page)
        return f"{run.storage.url}/{PAGE}"
    return write_to(target, page)


def write_to(target: Path, page: bytes) -> str:
    """Write a page where ``-o`` says; returns where that is. Raises RequestError."""
    try:
        target.write_bytes(page)
    except OSError as error:
        raise RequestError(
            f"-o {target}: cannot be written ({error.strerror}); choose another file"
        ) from None
    return str(target)


def summary(run: RunFolder, store: Store, observed: Observed) -> list[str]:
    """Warm and cold in a few lines of plain text, the time by stage, and where the page is."""
    record = read_record(run, store, observed)
    lines = [f"run {run.name}: {record.status.state}"]
    matches = comparisons(record)
    for comparison in matches:
        if len(matches) > 1:
            lines.append(f"{comparison.label}:")
        arms = comparison.arms.values()
        lines += [f"{arm.name:<5} test perplexity {arm.test.text} (95 %)" for arm in arms]
        lines += comparison.sentences
    lines += _suite_lines(record)
    lines += [
        f"{of.suite} {of.split}, {of.figure}: warm less cold is {of.text} points, paired (95 %)"
        for comparison in matches
        for of in comparison.suites
    ]
    lines += [f"{name:<9} {text}" for name, text in _time_by_stage(record)]
    if run.storage.exists(PAGE):
        lines.append(f"report: {run.storage.url}/{PAGE}")
    else:
        lines.append(f"report: not written yet; `orchestrator report {run.name}` writes it")
    return lines


def _suite_lines(record: Record) -> Iterator[str]:
    for stage in record.of_stage("suite_scores"):
        for split, figure, score, chance, _ in suite_rows(stage.facts):
            whose = ", ".join(stage.instance.variants)
            yield f"{stage.suite_name} {split}, {figure}: {score} %, chance {chance} ({whose})"


def render(record: Record, draw: Draw = figure_svg) -> str:
    """The page's text. What draws its figures may be replaced, for it takes most of the time."""
    matches = comparisons(record)
    best = set[str]().union(*(comparison.best for comparison in matches))
    return render_page(
        "page.html",
        figures(record, best),
        draw,
        record=record,
        ended_at=_ended_at(record),
        comparisons=matches,
        window=window(record),
        is_raw_shown=len(drawn(record, best)) <= NUM_RAW_CURVES,
        began_at=min((a.status.started_at for s in record.stages for a in s.attempts), default=0.0),
        bar=_bar(timeline(record.status.accounted)),
        by_stage=_time_by_stage(record),
        failures=_failures(record),
        findings=findings(record, matches),
        published=published,
        signs=SIGNS,
        versions=_versions(record.stages),
        sections=SECTIONS,
        baseline=baseline,
        doubts=doubts,
        measure=measure,
        part_names=PART_NAMES,
        remarks=_remarks,
        shares_percent=shares_percent,
        split_rows=split_rows,
        suite_rows=suite_rows,
        throughput=_throughput,
        unit_measures=unit_measures,
        unit_quality=unit_quality,
        unit_verdict=unit_verdict,
    )


def _versions(stages: Sequence[StageRecord]) -> dict[str, list[str]]:
    """Each set of package versions with the stage instances it made."""
    makers: dict[str, list[str]] = {}
    for stage in stages:
        versions = stage.producer.get("versions")
        if isinstance(versions, Mapping):
            text = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
            makers.setdefault(text, []).append(stage.instance.id)
    return makers


def _remarks(attempt: AttemptRecord) -> str:
    """Where an attempt ran, how it ended and what happened to it."""
    status, counts = attempt.status, sorted(attempt.events.items())
    events = (f"{count} {kind}" for kind, count in counts if kind not in _DULL_EVENTS)
    end = filter(None, (status.cause, status.reason, status.message))
    return "; ".join(filter(None, (status.node, ": ".join(end), ", ".join(events))))


def _throughput(stage: StageRecord, attempt: AttemptRecord) -> str:
    """The attempt's last speed; of a training the median over its steps besides."""
    speeds = []
    if "done" in attempt.progress:
        done, total, unit = (attempt.progress.get(n, "?") for n in ("done", "total", "unit"))
        speeds.append(f"{shown('', done)} of {shown('', total)} {unit}")
    rates = dict(attempt.rates)
    if attempt.tokens_per_s:
        rates.pop("tokens_per_s", None)
        speeds.append(f"median {attempt.tokens_per_s:,.0f} tokens/s")
    if attempt.mfu:
        rates.pop("mfu", None)
        speeds.append(f"median MFU {100 * attempt.mfu:.1f} %")
    speeds += [f"{shown(name, value)} {label(name)}" for name, value in rates.items()]
    if speed := _audio_s_per_s(stage):
        speeds.append(f"{speed:.1f} audio s/s, start-up included")
    return "; ".join(speeds)


def _audio_s_per_s(stage: StageRecord) -> float | None:
    """Seconds of audio by second of wall clock, when one attempt of this run did it all."""
    audio_s = stage.facts.get("audio_s") if BY_NAME[stage.instance.stage].is_elastic else None
    if not isinstance(audio_s, int | float) or len(stage.attempts) != 1:
        return None
    attempt = stage.attempts[0].status
    took_s = (attempt.ended_at or attempt.started_at) - attempt.started_at
    return audio_s / took_s if took_s > 0 else None


def _bar(stretches: Sequence[Interval]) -> list[tuple[float, float, str]]:
    """Offset and width, of a whole of 1, and part: what most of each `_BAR_CELLS`th went into."""
    if not stretches:
        return []
    began_at, elapsed_s = stretches[0].began_at, stretches[-1].ended_at - stretches[0].began_at
    cells: list[defaultdict[str, float]] = [defaultdict(float) for _ in range(_BAR_CELLS)]
    for stretch in stretches:
        start, end = ((at - began_at) / elapsed_s * _BAR_CELLS for at in stretch[:2])
        for n in range(int(start), min(int(end) + 1, _BAR_CELLS)):
            cells[n][stretch.part] += min(end, n + 1) - max(start, n)
    named = itertools.groupby(enumerate(cells), lambda cell: max(cell[1], key=cell[1].__getitem__))
    runs = ((part, [n for n, _ in run]) for part, run in named)
    return [(run[0] / _BAR_CELLS, len(run) / _BAR_CELLS, part) for part, run in runs]


def _failures(record: Record) -> list[tuple[str, str, str, str]]:
    """Cause, how often, the time of those attempts, and where: of attempts that did not succeed."""
    by_cause: dict[str, list[tuple[str, float]]] = {}
    ended_at = _ended_at(record)
    for stage in record.stages:
        for attempt in stage.attempts:
            status = attempt.status
            if status.state not in (RunState.SUCCEEDED, RunState.RUNNING):
                took_s = (attempt.until or ended_at) - status.started_at
                cause = status.cause or status.state
                by_cause.setdefault(cause, []).append((stage.instance.id, took_s))
    return [
        (
            cause,
            f"{len(ended):,}",
            format_duration(sum(took_s for _, took_s in ended)),
            ", ".join(dict.fromkeys(name for name, _ in ended)),
        )
        for cause, ended in by_cause.items()
    ]


def _time_by_stage(record: Record) -> list[tuple[str, str]]:
    """Stage name to the time its attempts took, all instances added up."""
    ended_at = _ended_at(record)
    names = dict.fromkeys(stage.instance.stage for stage in record.stages)
    return [(name, _time_of(record.of_stage(name), ended_at)) for name in names]


def _time_of(stages: Sequence[StageRecord], now: float) -> str:
    attempts = [a for stage in stages for a in stage.attempts]
    if not attempts:
        return "reused" if all(s.status.is_reused for s in stages) else "not begun"
    took_s = sum((a.until or now) - a.status.started_at for a in attempts)
    more = f" in {len(attempts)} attempts" if len(attempts) > 1 else ""
    return f"{format_duration(took_s)}{more}"


def _ended_at(record: Record) -> float:
    """When the record ends: now only while something runs; a finished run's page never changes."""
    ends = [a.until for stage in record.stages for a in stage.attempts]
    return max((end or time.time() for end in ends), default=time.time())
