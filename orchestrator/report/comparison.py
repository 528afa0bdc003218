"""The page that compares runs: one HTML file that needs nothing else.

In: some runs, their stores, and how each was observed. Out: ``comparison.html``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.status import Observed
from orchestrator.ledger.store import Store
from orchestrator.report import across
from orchestrator.report.arms import baseline, measure
from orchestrator.report.page import write_to
from orchestrator.report.paired import NUM_RESAMPLINGS, PairedScores
from orchestrator.report.plots import figure_svg
from orchestrator.report.record import Record, read_record
from orchestrator.report.template import Draw, render_page

PAGE = Path("comparison.html")
SECTIONS = {
    "scores": "Scores",
    "differences": "Differences",
    "curves": "Training",
    "recipes": "Recipes",
    "effort": "Time and cost",
}
"""The page's parts by their anchor."""


def write_comparison(runs: Sequence[tuple[RunFolder, Store, Observed]], target: Path) -> str:
    """Write the page; returns where it is.

    Raises RequestError for a run that is no run, is given twice or trains nothing, or when
    ``target`` cannot be written.
    """
    records = [read_record(run, store, observed) for run, store, observed in runs]
    return write_to(target, render(records).encode())


def render(records: Sequence[Record], draw: Draw = figure_svg) -> str:
    """The page's text. Raises RequestError as `across.systems` does."""
    shown = across.systems(records)
    return render_page(
        "comparison.html",
        across.overlaid(shown),
        draw,
        records=records,
        suites=across.suite_table(shown),
        suites_against=across.suites_against_first(shown),
        systems=shown,
        said=across.sentences(shown),
        against=across.against_first(shown, PairedScores()),
        recipe_rows=across.recipe_differences(shown),
        effort_rows=across.effort_rows(shown),
        num_resamplings=NUM_RESAMPLINGS,
        sections=SECTIONS,
        baseline=baseline,
        measure=measure,
    )
