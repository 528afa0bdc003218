from __future__ import annotations

import dataclasses
import html.parser
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import RequestError
from orchestrator.ledger import checkpoints
from orchestrator.ledger.checkpoints import Manifest, Segment
from orchestrator.ledger.lease import Process
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.status import Observed
from orchestrator.report.page import render, summary, write_report
from orchestrator.report.record import read_record
from tests.unit.orchestrator.before import unpack
from tests.unit.orchestrator.report.conftest import Ledger, nll_table, scores_of

NewLedger = Callable[..., Ledger]
HOSTILE = "<script>alert(1)</script>$\\frac{1}{2}$&\"'"


class _Text(html.parser.HTMLParser):
    """The tags a browser would see, and the words it would show."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, _: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def page_of(ledger: Ledger) -> str:
    return Path(write_report(ledger.run, ledger.store, ledger.observed)).read_text()


def words_of(page: str) -> str:
    text = _Text()
    text.feed(page)
    return " ".join(" ".join(text.words).split())


def test_it_lies_in_the_run_folder_and_says_where(finished: Ledger) -> None:
    assert (
        write_report(finished.run, finished.store, finished.observed)
        == f"{finished.run.storage.url}/report.html"
    )
    assert finished.run.storage.read_bytes("report.html").startswith(b"<!doctype html>")


def test_it_goes_where_asked_and_nowhere_else(finished: Ledger, tmp_path: Path) -> None:
    target = tmp_path / "r.html"
    assert write_report(finished.run, finished.store, finished.observed, target) == str(target)
    assert "<svg" in target.read_text()
    assert not finished.run.storage.exists("report.html")


def test_a_target_that_cannot_be_written_is_named(finished: Ledger, tmp_path: Path) -> None:
    target = tmp_path / "missing" / "r.html"
    with pytest.raises(RequestError, match=r"-o .*r\.html: cannot be written .*; choose another"):
        write_report(finished.run, finished.store, finished.observed, target)


def test_a_run_that_does_not_exist_is_an_error(finished: Ledger) -> None:
    with pytest.raises(RequestError, match="nobody: no such run"):
        write_report(
            RunFolder(finished.store.run_storage("nobody")), finished.store, finished.observed
        )


def test_a_finished_run_is_told_whole(untouched: tuple[Ledger, str]) -> None:
    ledger, page = untouched
    words = words_of(page)
    assert "succeeded" in words
    assert "Not there" not in words
    for sentence in (
        "In this run, warm start is better: test perplexity 14.10 [13.70, 14.50] warm, "
        "17.00 [16.60, 17.40] cold, 17.1 % lower; the 95 % intervals do not overlap.",
        "The cold arm does not beat counting pairs of units: the bigram baseline has perplexity 15",
        "One training seed an arm",
        "bigram counts baseline",
        "kept 1 h 51 min",
        "speech to train on 1 h 40 min 167,700 tokens",
        "frame rate 50 Hz",
        "left out 31",
        "quarantined 2",
        "train 2,150 2,150 167,700 1 h 40 min 27.9",
        "unigram entropy 6.57 bits",
        "The encoder's units tell more of the phones than MFCC units do.",
        "same clusters 0.420 0.316",
        "19 of 19 shards; 41.25 audio s/s; 223.2 audio s/s, start-up included",
        "median 256 tokens/s",
        "warm has cold's last loss after 0.80 of cold's updates; published: about 0.25",
        "Looked for: loss or gradient that explodes; ",
        "preempted: goes on",
        "continuation 3 4",
        "torch 2.14.1",
        "commit 0123abc",
        "global_batch_tokens: 128",
    ):
        assert sentence in words
    for instance in ledger.plan.instances:
        assert instance.id in words
        assert instance.key in words


def test_the_elapsed_time_is_shown_by_part(untouched: tuple[Ledger, str]) -> None:
    """The second attempt of the training wrote lines without times, so all of it is restart."""
    assert (
        "elapsed 7 min 40 s · productive 4 min 50 s (63.0 %) · checkpoint stall 0.0 s (0.0 %) · "
        "lost 50.0 s (10.9 %) · restart 2 min 0 s (26.1 %) · start-up 0.0 s (0.0 %) · "
        "queue 0.0 s (0.0 %) · idle 0.0 s (0.0 %) · ETTR 0.63"
    ) in words_of(untouched[1])


def test_the_goodput_is_drawn_over_time(untouched: tuple[Ledger, str]) -> None:
    """460 s: data and first attempts, lost from 150 to 200 s, restart until 320 s."""
    (drawn,) = re.findall(r'<svg class="bar".*?</svg>', untouched[1], re.DOTALL)
    bars = [
        (float(x), float(width), part)
        for x, width, part in re.findall(r'x="([\d.]+)".*?width="([\d.]+)".*?part-(\w+)', drawn)
    ]
    assert [part for *_, part in bars] == ["productive", "lost", "restart", "productive"]
    for (x, *_), second in zip(bars, (0, 150, 200, 320), strict=True):
        assert x == pytest.approx(1000 * second / 460, abs=3)
    assert sum(width for _, width, _ in bars) == pytest.approx(1000, abs=0.1)


def test_failures_are_added_up_by_cause(finished: Ledger) -> None:
    train = finished.of_stage("train")[0]
    finished.attempt(train, 30.0, state="preempted", cause="preempted")
    words = words_of(page_of(finished))
    assert f"preempted 2 1 min 20 s {train.id}" in words
    assert "No attempt has failed." not in words


def test_the_attempts_are_drawn_over_time(untouched: tuple[Ledger, str]) -> None:
    """460 s on 720 units: the two attempts of the first training begin at 150 and 200 s."""
    ledger, page = untouched
    (drawn,) = re.findall(r'<svg class="gantt".*?</svg>', page, re.DOTALL)
    tree = ET.fromstring(drawn)
    bars = [(float(r.attrib["x"]), float(r.attrib["width"])) for r in tree.iter("rect")]
    assert (210 + 150 * 720 / 460, 50 * 720 / 460) in [pytest.approx(bar, abs=0.01) for bar in bars]
    assert len(bars) == sum(len(ledger.run.attempts(i.id)) for i in ledger.plan.instances)
    words = [text.text for text in tree.iter("text")]
    assert {"0.0 s", "1 min 55 s", "3 min 50 s", "5 min 45 s", "7 min 40 s"} <= set(words)
    assert "var(--preempted, var(--muted))" in drawn


def test_it_needs_nothing_from_outside(untouched: tuple[Ledger, str]) -> None:
    _, page = untouched
    assert not re.search(r'(src|href|action)=(?!"#)', page)
    assert not re.search(r"@import|url\((?!#)", page)
    assert "default-src 'none'" in page
    assert "prefers-color-scheme: dark" in page


def test_the_same_ledger_gives_the_same_bytes(untouched: tuple[Ledger, str]) -> None:
    ledger, page = untouched
    assert page_of(ledger) == page


def test_all_figures_use_the_pages_colours_and_share_no_id(
    untouched: tuple[Ledger, str],
) -> None:
    _, page = untouched
    figures = re.findall(r'<figure class="figure.*?</figure>', page, re.DOTALL)
    assert len(figures) == 5
    for figure in figures:
        assert not re.search(r"#[0-9a-f]{6}", figure)
    for curves in figures[:3]:
        assert "var(--warm)" in curves
        assert "var(--cold)" in curves
    assert "var(--part-lost)" in figures[3]
    assert "var(--preempted, var(--muted))" in figures[4]
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', page)) <= {(i, "") for i in ids} | {
        ("", i) for i in ids
    }


def test_hostile_names_stay_text(new_ledger: NewLedger) -> None:
    ledger = new_ledger(
        {"model.text_model": ["lm", HOSTILE]},
        model={"text_model": "x", "revision": "r"},
    )
    ledger.finish_data()
    name = next(v["name"] for v in ledger.plan.variants if "script" in v["name"])
    ledger.finish_variant(name, scores_of(15.0, 15.0))
    train = ledger.plan.instance(
        next(v for v in ledger.plan.variants if v["name"] == name)["instances"]["train"]
    )
    ledger.attempt(train, 1.0, state="failed", cause=HOSTILE, reason=HOSTILE)
    text = _Text()
    page = page_of(ledger)
    text.feed(page)
    num_figures = page.count('<figure class="figure curves"')
    assert num_figures == 3
    # The page's own two, and the data of each figure, which is none to a browser.
    assert text.tags.count("script") == 2 + num_figures
    assert page.count('<script type="application/json">') == num_figures
    assert " ".join(text.words).count("alert(1)") >= 4


def test_a_run_that_was_only_created(new_ledger: NewLedger) -> None:
    ledger = new_ledger()
    words = words_of(page_of(ledger))
    assert "pending" in words
    assert "No variant has test scores yet." in words
    assert "No training has reached its first checkpoint yet." in words
    assert "No attempt of this run yet." in words
    assert words.count("is not finished: pending.") == len(ledger.plan.instances)


def test_a_half_finished_run_shows_what_it_has(new_ledger: NewLedger) -> None:
    ledger = new_ledger()
    ledger.finish_data()
    ledger.finish_variant("init=twist", scores_of(14.2, 14.1))
    cold = ledger.of_stage("train")[1]
    ledger.attempt(cold, 60.0)
    words = words_of(page_of(ledger))
    assert (
        "Warm start: test perplexity 14.10 [13.70, 14.50]; the cold arm has no scores yet" in words
    )
    assert f"{cold.id} (init=cold) is not finished: failed." in words
    assert "node_lost" in words
    assert "not yet" in words


def test_an_attempt_without_an_end_lasts_until_its_last_sign_of_life(new_ledger: NewLedger) -> None:
    """Not until the run's end: its supervisor died 600 s before another one went on."""
    ledger = new_ledger()
    corpus = ledger.of_stage("corpus")[0]
    killed = ledger.attempt(corpus, 600.0)
    heard = {"at": killed.started_at + 20.0, "done": 1, "total": 19, "unit": "shards"}
    killed.storage.replace("progress.json", json.dumps(heard).encode())
    ledger.attempt(corpus, 30.0, state="succeeded")
    ledger.publish(corpus)
    page = page_of(ledger)
    assert "corpus: 50.0 s in 2 attempts" in words_of(page)
    (drawn,) = re.findall(r'<svg class="gantt".*?</svg>', page, re.DOTALL)
    widths = [float(bar.attrib["width"]) for bar in ET.fromstring(drawn).iter("rect")]
    assert widths == [pytest.approx(seconds * 720 / 630, abs=0.01) for seconds in (20, 30)]


def test_while_the_supervisor_lives_the_last_attempt_is_running(new_ledger: NewLedger) -> None:
    ledger = new_ledger()
    ledger.run.begin_supervisor(process=asdict(Process.current()))
    corpus, encoder = (ledger.of_stage(s)[0] for s in ("corpus", "encoder"))
    ledger.attempt(corpus, 60.0)
    record = read_record(ledger.run, ledger.store, ledger.observed)
    assert record.status.state == "running"
    states = {stage.instance.id: stage.status.state for stage in record.stages}
    assert (states[corpus.id], states[encoder.id]) == ("running", "queued")


def test_a_training_under_way_is_drawn_up_to_its_newest_checkpoint(new_ledger: NewLedger) -> None:
    ledger = new_ledger({})
    (train,) = ledger.of_stage("train")
    out = ledger.artifact(train).storage
    for name, steps in {"zombie": (1, 2, 3), "ours": (1, 2)}.items():
        lines = "".join(json.dumps({"step": s, "loss": 4.0}) + "\n" for s in steps)
        out.create(f"metrics/{name}.jsonl", lines.encode())
    for step, lease_n, segment in ((3, 1, "zombie"), (2, 2, "ours")):
        metrics = (Segment(path=f"metrics/{segment}.jsonl", sha256=""),)
        checkpoints.commit(
            out,
            Manifest(
                step=step,
                lease_n=lease_n,
                world_size=1,
                zero_stage=0,
                cursor=step,
                sample_hash="",
                files={},
                metrics=metrics,
            ),
        )
    page = page_of(ledger)
    assert (
        "var(--warm)" in re.findall(r'<figure class="figure curves".*?</svg>', page, re.DOTALL)[0]
    )
    assert read_record(ledger.run, ledger.store, ledger.observed).variants[0].training == (
        (1, 4.0),
        (2, 4.0),
    )


def files_below(folder: Path) -> list[str]:
    """Each kind of file once: of two variants' scores, one will do."""
    found = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    kinds = {re.sub(r"[0-9a-f]{12}", "", p): p for p in found if not p.endswith("plan.json")}
    return sorted(kinds.values())


@pytest.mark.parametrize("damage", ["remove", "garbage", "null", "list"])
def test_no_single_file_is_needed(finished: Ledger, damage: str) -> None:
    """Every file but the plan is taken away or spoilt in turn: there is a page all the same."""
    root = finished.store.storage.local_root
    assert root is not None
    bodies = {"garbage": b"\xff{", "null": b"null\n", "list": b"[1]\n"}
    files, observed = files_below(root), finished.observed
    assert len(files) > 30
    for path in files:
        file = root / path
        kept = file.read_bytes()
        if damage == "remove":
            file.unlink()
        else:
            file.write_bytes(bodies[damage])
        record = read_record(finished.run, finished.store, observed)
        page = render(record, draw=lambda _: "")
        assert page.rstrip().endswith("</html>"), path
        file.write_bytes(kept)


@pytest.mark.parametrize("name", ["MANIFEST.json", "recipe.yaml"])
def test_the_page_is_whole_without_any_file_of_a_name(finished: Ledger, name: str) -> None:
    root = finished.store.storage.local_root
    assert root is not None
    victims = list(root.rglob(name))
    assert victims
    for file in victims:
        file.unlink()
    assert page_of(finished).rstrip().endswith("</html>")


@pytest.mark.parametrize(
    "facts",
    [
        {"suite": None, "splits": {"dev": {"all": None}}, "units": 1, "doubts": 2},
        {"splits": [1], "unit_quality": "none", "units": {}, "mfcc": {"abx_within": "low"}},
        {"splits": {"train": 3, "valid": {"num_samples": "many"}, "test": None}},
    ],
)
@pytest.mark.parametrize("stage", ["suite_scores", "unit_quality", "pack", "encoder", "train"])
def test_facts_of_any_form_are_no_end_of_the_page(
    untouched: tuple[Ledger, str], stage: str, facts: dict[str, Any]
) -> None:
    ledger, _ = untouched
    record = read_record(ledger.run, ledger.store, ledger.observed)
    first, *others = record.stages
    instance = dataclasses.replace(first.instance, stage=stage)
    status = dataclasses.replace(first.status, instance=instance)
    odd = dataclasses.replace(first, status=status, facts=facts)
    page = render(dataclasses.replace(record, stages=(odd, *others)), draw=lambda _: "")
    assert page.rstrip().endswith("</html>")


def test_nll_by_utterance_that_cannot_be_read_is_a_line_on_the_page(finished: Ledger) -> None:
    """The first file is damaged where pyarrow gives an OSError, the second cannot be opened."""
    first, second = (finished.artifact(i).storage for i in finished.of_stage("perplexity"))
    whole = nll_table([1.0, 2.0], num_scored=3)
    first.create("test.nll.parquet", whole[:4] + b"\xff" * 40 + whole[44:])
    second.create("test.nll.parquet/part-0", b"")
    words = words_of(page_of(finished))
    (said,) = re.findall(r"The arms are not paired by utterance: .*?\. Perplexity", words)
    assert said.count("NLL by utterance cannot be read (") == 2


def test_a_missing_file_of_a_complete_artifact_is_named(finished: Ledger) -> None:
    perplexity = finished.of_stage("perplexity")[0]
    finished.artifact(perplexity).storage.delete("scores.json")
    assert f"{perplexity.id}: scores.json is missing." in words_of(page_of(finished))


def test_an_artifact_of_another_run_is_called_reused(new_ledger: NewLedger) -> None:
    ledger = new_ledger()
    corpus = ledger.of_stage("corpus")[0]
    ledger.publish(corpus, run="earlier-run")
    words = words_of(page_of(ledger))
    assert "reused" in words
    assert "run earlier-run, attempt 1" in words


def test_the_summary_gives_both_arms_the_times_and_the_page(finished: Ledger) -> None:
    lines = summary(finished.run, finished.store, finished.observed)
    assert lines[0] == f"run {finished.run.name}: succeeded"
    assert lines[1] == "warm  test perplexity 14.10 [13.70, 14.50] (95 %)"
    assert lines[2] == "cold  test perplexity 17.00 [16.60, 17.40] (95 %)"
    assert lines[3].startswith("In this run, warm start is better")
    assert "train     4 min 50 s in 3 attempts" in lines
    assert (
        lines[-1] == f"report: not written yet; `orchestrator report {finished.run.name}` writes it"
    )
    where = write_report(finished.run, finished.store, finished.observed)
    assert summary(finished.run, finished.store, finished.observed)[-1] == f"report: {where}"


def test_every_element_is_closed_in_its_place(untouched: tuple[Ledger, str]) -> None:
    class Nesting(html.parser.HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert all("<" not in f"{name}{value}" for name, value in attrs)
            if tag not in {"meta"}:
                self.open.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    nesting = Nesting()
    nesting.feed(untouched[1])
    assert nesting.open == []


def test_what_scrolls_can_be_reached_by_keyboard_and_has_a_name(
    untouched: tuple[Ledger, str],
) -> None:
    _, page = untouched
    scrolls = re.findall(r'<(?:div class="(?:wide|static)"|pre)[^>]*>', page)
    assert len(scrolls) > 8
    for tag in scrolls:
        if 'class="static" role="img"' not in tag:
            assert 'tabindex="0"' in tag
        assert tag.startswith("<pre") or 'aria-label="' in tag
    assert len(re.findall("<h1", page)) == 1
    assert "<th>" not in page
    for anchor in re.findall(r'<a href="#([^"]*)"', page):
        assert f'<section id="{anchor}">' in page


def test_importing_the_page_imports_neither_matplotlib_nor_jinja() -> None:
    code = (
        "import sys, orchestrator.report.page;"
        "print([m for m in ('matplotlib', 'jinja2', 'pyarrow', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_run_of_the_version_before_is_shown(tmp_path: Path) -> None:
    store, run = unpack(tmp_path)
    record = read_record(run, store, Observed(is_alive=False))
    assert record.gaps == ()
    for variant in record.variants:
        assert variant.scores.splits["test"]["model"].perplexity > 1
        assert len(variant.continuations) == 2
        assert len(variant.training) == 12
