"""The report page: one HTML file that needs nothing else, and its short form for a terminal.

In: a run's folder, its store, and how it was observed. Out: ``report.html``. The page
loads nothing: styles and figures are inline, and its content policy forbids the rest. All text goes
through the template's escaping.
"""

from __future__ import annotations

import datetime
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import RequestError
from orchestrator.ledger.goodput import PART_NAMES, shares_percent
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.status import AttemptStatus, Observed, RunState
from orchestrator.ledger.store import Store
from orchestrator.plan.stages import BY_NAME
from orchestrator.quantities import format_bytes, format_duration
from orchestrator.report import plots
from orchestrator.report.arms import ARMS, Comparison, comparisons, measure
from orchestrator.report.facts import fact_rows, label, shown, split_rows, unit_quality
from orchestrator.report.record import (
    AttemptRecord,
    Record,
    StageRecord,
    VariantRecord,
    read_record,
)

PAGE = "report.html"
_TEMPLATE = Path(__file__).parent / "page.html"
_MAX_UNITS_SHOWN = 64
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
        lines += [
            f"{arm:<5} test perplexity {comparison.arms[arm].test.text} (95 %)"
            for arm in ARMS
            if arm in comparison.arms
        ]
        lines += comparison.sentences
    lines += [f"{name:<9} {text}" for name, text in _time_by_stage(record)]
    if run.storage.exists(PAGE):
        lines.append(f"report: {run.storage.url}/{PAGE}")
    else:
        lines.append(f"report: not written yet; `orchestrator report {run.name}` writes it")
    return lines


def render(record: Record) -> str:
    """The page's text."""
    import jinja2
    import markupsafe

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    content = page_content(record)
    drawn = {
        "curves_svg": plots.curves_svg([item["curve"] for item in content["curves"]]),
        "gantt_svg": plots.gantt_svg(content["spans"]),
    }
    safe = {name: markupsafe.Markup(svg) for name, svg in drawn.items()}
    return environment.from_string(_TEMPLATE.read_text(encoding="utf-8")).render(content, **safe)


def page_content(record: Record) -> dict[str, Any]:
    """Everything the template shows, figures not drawn yet."""
    matches = comparisons(record)
    return {
        "record": record,
        "ended_at": _utc(_ended_at(record)),
        "tiles": _tiles(record, matches),
        "comparisons": [_comparison_view(comparison) for comparison in matches],
        "curves": _curves_view(record.variants, matches),
        "window": max((plots.mean_window(len(v.training)) for v in record.variants), default=1),
        "is_raw_shown": sum(bool(v.training) for v in record.variants) <= plots.NUM_RAW_CURVES,
        "continuations": [v for v in map(_continuations_view, record.variants) if v["samples"]],
        **_data_content(record),
        **_time_content(record),
        **_lineage_content(record),
    }


def _data_content(record: Record) -> dict[str, Any]:
    splits = [(s.instance.id, split_rows(s.facts)) for s in record.of_stage("pack")]
    quality = [(s.instance.id, unit_quality(s.facts)) for s in record.of_stage("encoder")]
    return {
        "splits": [(instance_id, rows) for instance_id, rows in splits if rows],
        "quality": [(instance_id, view) for instance_id, view in quality if view],
        "speech": _facts_views(record, "corpus", "tokenize"),
        "units": _facts_views(record, "encoder", "codebook"),
        "trained": _facts_views(record, "train"),
    }


def _time_content(record: Record) -> dict[str, Any]:
    leaders = [s for s in record.stages if s.is_leader]
    return {
        "spans": _spans(record),
        "attempts": [_attempt_view(stage, a) for stage in leaders for a in stage.attempts],
        "goodput": _goodput_view(record.status.goodput),
        "by_stage": _time_by_stage(record),
    }


def _goodput_view(parts: Mapping[str, float | None]) -> list[tuple[str, str]]:
    """The elapsed time, every part of it with its share, and the effective training time ratio."""
    view = [
        (PART_NAMES[part], f"{format_duration(parts[f'{part}_s'] or 0.0)} ({share:.1f} %)")
        for part, share in shares_percent(parts).items()
    ]
    if elapsed_s := parts.get("elapsed_s"):
        view.insert(0, ("elapsed", format_duration(elapsed_s)))
    if (ettr := parts.get("ettr")) is not None:
        view.append(("ETTR", f"{ettr:.2f}"))
    return view


def _lineage_content(record: Record) -> dict[str, Any]:
    return {
        "stages": [_stage_view(record, stage) for stage in record.stages],
        "versions": _versions(record.stages),
        "commit": str(record.code.get("commit") or "not a checkout"),
        "is_patched": bool(record.code.get("patch")),
    }


def _tiles(record: Record, matches: Sequence[Comparison]) -> list[tuple[str, str, str]]:
    """Name, value and footnote of the figures at the top."""
    tiles = []
    if len(matches) == 1:
        tiles += [
            (
                f"{name} start, test perplexity",
                f"{arm.test.perplexity:.2f}",
                _interval(arm.test.low, arm.test.high),
            )
            for name, arm in matches[0].arms.items()
        ]
    packs = record.of_stage("pack")
    rows = split_rows(packs[0].facts) if len(packs) == 1 else ()
    tiles += [("speech to train on", r[4], f"{r[3]} tokens") for r in rows if r[0] == "train"]
    if elapsed_s := record.status.goodput.get("elapsed_s"):
        done = sum(s.is_complete for s in record.stages)
        tiles.append(
            (
                "time",
                format_duration(elapsed_s),
                f"{done} of {len(record.stages)} stage instances done",
            )
        )
    return tiles


def _comparison_view(comparison: Comparison) -> dict[str, Any]:
    best = {name for arm in comparison.arms.values() for name in arm.variants}
    rows = [_score_row(v, is_best=v.name in best) for v in comparison.variants]
    baselines = [_baseline_row(name, comparison.variants) for name in ("bigram", "unigram")]
    return {"comparison": comparison, "rows": rows, "baselines": [row for row in baselines if row]}


def _score_row(variant: VariantRecord, *, is_best: bool) -> dict[str, Any]:
    valid, test = measure(variant, "valid"), measure(variant, "test")
    return {
        "name": variant.name,
        "arm": variant.arm,
        "is_best": is_best,
        "valid": valid.text if valid else "not yet",
        "test": test.text if test else "not yet",
        "nats_per_s": f"{test.nats_per_s:.2f}" if test and test.nats_per_s else "-",
    }


def _baseline_row(name: str, variants: Iterable[VariantRecord]) -> dict[str, Any] | None:
    """A counting baseline: it depends on the units alone, so any variant's file has it."""
    for variant in variants:
        valid, test = measure(variant, "valid", name), measure(variant, "test", name)
        if test:
            nats = f"{test.nats_per_s:.2f}" if test.nats_per_s else "-"
            return {
                "name": name,
                "valid": valid.text if valid else "-",
                "test": test.text,
                "nats_per_s": nats,
            }
    return None


def _curves_view(
    variants: Sequence[VariantRecord], matches: Sequence[Comparison]
) -> list[dict[str, Any]]:
    shown_variants = [v for v in variants if v.training or v.validation]
    best = {
        name for comparison in matches for arm in comparison.arms.values() for name in arm.variants
    }
    seen: Counter[str] = Counter()
    views = []
    for variant in shown_variants:
        dash = plots.DASHES[seen[variant.arm] % len(plots.DASHES)]
        seen[variant.arm] += 1
        is_best = variant.name in best or len(shown_variants) <= len(ARMS)
        views.append({"name": variant.name, "curve": _curve(variant, dash, is_best=is_best)})
    return views


def _curve(variant: VariantRecord, dash: str, *, is_best: bool) -> plots.Curve:
    return plots.Curve(
        arm=variant.arm,
        dash=dash,
        is_best=is_best,
        training=variant.training,
        validation=variant.validation,
    )


def _stage_view(record: Record, stage: StageRecord) -> dict[str, Any]:
    producer = _mapping(stage.manifest.get("producer"))
    files = _mapping(stage.manifest.get("files")).values()
    instance = stage.instance
    return {
        "id": instance.id,
        "key": instance.key,
        "variants": _variants(record, stage),
        "needs": list(instance.needs.values()),
        "state": stage.status.shown_state,
        "decision": f"{instance.decision}: {instance.reason}"
        if instance.reason
        else instance.decision,
        "maker": _maker(record, producer),
        "size": format_bytes(sum(f.get("size", 0) for f in files)) if files else "",
        "num_files": len(files),
    }


def _variants(record: Record, stage: StageRecord) -> str:
    names = stage.instance.variants
    return "all variants" if 1 < len(names) == len(record.variants) else "; ".join(names)


def _maker(record: Record, producer: Mapping[str, Any]) -> str:
    if not producer:
        return ""
    run = (
        "this run"
        if producer.get("run") == record.run.name
        else f"run {producer.get('run', 'unknown')}"
    )
    attempt = f", attempt {producer['attempt']}" if "attempt" in producer else ""
    return f"{run}{attempt}"


def _versions(stages: Sequence[StageRecord]) -> list[tuple[str, str]]:
    """Each set of package versions with the stage instances it made."""
    makers: dict[str, list[str]] = {}
    for stage in stages:
        versions = _mapping(_mapping(stage.manifest.get("producer")).get("versions"))
        if versions:
            text = ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))
            makers.setdefault(text, []).append(stage.instance.id)
    return [(", ".join(ids), text) for text, ids in makers.items()]


def _facts_views(record: Record, *stages: str) -> list[dict[str, Any]]:
    """A card for each finished artifact of some stages; what has a table of its own is left out."""
    return [
        {
            "id": stage.instance.id,
            "variants": _variants(record, stage),
            "rows": fact_rows(stage.facts, skip=("unit_quality", "history", "splits")),
        }
        for name in stages
        for stage in record.of_stage(name)
        if stage.facts
    ]


def _continuations_view(variant: VariantRecord) -> dict[str, Any]:
    """The samples of a variant; an object that wraps the list is looked into."""
    found = variant.continuations
    if isinstance(found, Mapping):
        found = next((value for value in found.values() if isinstance(value, list)), [])
    items = [_sample(item) for item in found or [] if isinstance(item, Mapping)]
    return {"name": variant.name, "arm": variant.arm, "samples": items}


def _sample(item: Mapping[str, Any]) -> dict[str, Any]:
    parts = [
        (name, _units(item[name])) for name in ("prompt", "continuation", "truth") if name in item
    ]
    prompt_s = item.get("prompt_s")
    about = f", prompt of {prompt_s:.1f} s" if isinstance(prompt_s, int | float) else ""
    return {"id": f"{item.get('id', '')}{about}", "parts": parts}


def _units(units: Any) -> str:
    if not isinstance(units, list):
        return json.dumps(units)
    more = f" … ({len(units)} units)" if len(units) > _MAX_UNITS_SHOWN else ""
    return " ".join(map(str, units[:_MAX_UNITS_SHOWN])) + more


def _attempt_view(stage: StageRecord, attempt: AttemptRecord) -> dict[str, Any]:
    status = attempt.status
    events = [
        f"{count} {kind}"
        for kind, count in sorted(attempt.events.items())
        if kind not in _DULL_EVENTS
    ]
    return {
        "id": stage.instance.id,
        "number": status.n,
        "state": status.state,
        "began": _utc(status.started_at),
        "took": _took(status),
        "node": status.node,
        "end": ": ".join(filter(None, (status.cause, status.reason, status.message))),
        "throughput": _throughput(stage, attempt),
        "events": ", ".join(events),
    }


def _throughput(stage: StageRecord, attempt: AttemptRecord) -> str:
    """The attempt's last speed; of a training the median over its steps besides."""
    speeds = []
    if "done" in attempt.progress:
        done, total, unit = (attempt.progress.get(n, "?") for n in ("done", "total", "unit"))
        speeds.append(f"{shown('', done)} of {shown('', total)} {unit}")
    rates = dict(_mapping(attempt.progress.get("rates")))
    if attempt.tokens_per_s:
        rates.pop("tokens_per_s", None)
        speeds.append(f"median {attempt.tokens_per_s:,.0f} tokens/s")
    speeds += [f"{shown(name, value)} {label(name)}" for name, value in rates.items()]
    if speed := _audio_s_per_s(stage, attempt.status):
        speeds.append(f"{speed:.1f} audio s/s, start-up included")
    return "; ".join(speeds)


def _audio_s_per_s(stage: StageRecord, attempt: AttemptStatus) -> float | None:
    """Seconds of audio by second of wall clock, when one attempt of this run did it all."""
    audio_s = stage.facts.get("audio_s") if BY_NAME[stage.instance.stage].is_elastic else None
    if not isinstance(audio_s, int | float) or len(stage.attempts) != 1 or attempt.ended_at is None:
        return None
    took_s = attempt.ended_at - attempt.started_at
    return audio_s / took_s if took_s > 0 else None


def _spans(record: Record) -> list[plots.Span]:
    rows = [(s, a.status) for s in record.stages if s.is_leader for a in s.attempts]
    began_at, now = min((a.started_at for _, a in rows), default=0.0), _ended_at(record)
    return [
        plots.Span(
            row=stage.instance.id,
            number=a.n,
            state=a.state,
            start_s=a.started_at - began_at,
            end_s=max(a.ended_at or now, a.started_at) - began_at,
        )
        for stage, a in rows
    ]


def _time_by_stage(record: Record) -> list[tuple[str, str]]:
    """Stage name to the time its attempts took, all instances added up."""
    times: dict[str, list[float]] = {}
    for stage in record.stages:
        spans = times.setdefault(stage.instance.stage, [])
        if stage.is_leader:
            attempts = stage.status.attempts
            spans += [(a.ended_at or _ended_at(record)) - a.started_at for a in attempts]
    return [(name, _spent(name, spans, record)) for name, spans in times.items()]


def _spent(name: str, spans_s: Sequence[float], record: Record) -> str:
    if spans_s:
        more = f" in {len(spans_s)} attempts" if len(spans_s) > 1 else ""
        return f"{format_duration(sum(spans_s))}{more}"
    return "reused" if all(s.status.is_reused for s in record.of_stage(name)) else "not begun"


def _ended_at(record: Record) -> float:
    """When the record ends: now only while something runs; a finished run's page never changes."""
    attempts = [a for s in record.stages for a in s.status.attempts]
    if not attempts or any(a.state == RunState.RUNNING for a in attempts):
        return time.time()
    return max(a.ended_at or a.started_at for a in attempts)


def _took(attempt: AttemptStatus) -> str:
    return format_duration(attempt.ended_at - attempt.started_at) if attempt.ended_at else "-"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"95 %: {low:.2f} to {high:.2f}"


def _utc(at_s: float) -> str:
    return datetime.datetime.fromtimestamp(at_s, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
