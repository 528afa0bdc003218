"""The command line over a run whose artifacts are all there, with a real supervisor process."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from orchestrator.cli.main import VERBS, main
from orchestrator.control.request import prepare
from orchestrator.ledger.lease import Process
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.store import Store
from tests.unit.orchestrator import broken, trainings


class Project:
    """A recipe, a cluster, and a store in which everything the recipe needs is complete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        broken.SOUND.write(folder)
        prepared = prepare(folder / "r.yaml", folder / "c.yaml")
        self.prepared, self.plan, self.store = prepared, prepared.plan, prepared.store
        for instance in self.plan.instances:
            artifact = self.store.artifact(instance.stage, instance.key)
            artifact.begin(instance.inputs)
            artifact.storage.create("data.bin", b"0123456789")
            if instance.stage == "train":
                artifact.storage.create("metrics.jsonl", trainings.metric_lines(range(1, 13)))
            facts = trainings.FACTS if instance.stage == "train" else {}
            artifact.publish(inputs=instance.inputs, facts=facts, producer={})

    @property
    def run(self) -> RunFolder:
        return RunFolder(self.store.run_storage(self.plan.run))

    def create(self) -> RunFolder:
        """The run without a supervisor."""
        self.run.create(self.plan, self.prepared.recipe, self.prepared.cluster, {}, {})
        return self.run

    def orchestrator(self, *words: str) -> int:
        return main([*words, "--cluster", str(self.folder / "c.yaml")])


def wait_until_over(run: RunFolder) -> None:
    """Return once the supervisor has written how the run ended; its page is there before."""
    deadline = time.monotonic() + 60
    while not all(supervisor.end for supervisor in run.supervisors()):
        log = Path(run.storage.url, "supervisor.log").read_text()
        assert time.monotonic() < deadline, f"no report:\n{log}"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("project"))
    assert project.orchestrator("submit", str(project.folder / "r.yaml")) == 0
    wait_until_over(project.run)
    return project


def test_a_submitted_run_has_everything_its_jobs_need(project: Project) -> None:
    names = set(project.run.storage.children())
    assert {"recipe.yaml", "cluster.yaml", "plan.json", "code.json", "code"} <= names
    assert project.run.storage.exists("code/jobs/train.py")
    assert project.run.storage.exists("report.html")
    assert [s.end["state"] for s in project.run.supervisors() if s.end] == ["succeeded"]


def test_plan_says_that_everything_is_there(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert project.orchestrator("plan", str(project.folder / "r.yaml")) == 0
    said = capsys.readouterr()
    assert said.out.count("reuse") == 8
    assert said.err == f"cluster: {project.folder}/c.yaml (given by --cluster)\n"


@pytest.mark.parametrize(
    ("prices", "says"),
    [
        ("{gpu_hour: 2, cpu_hour: 1, gpu_tflops: 1.0e-9}", "at least 0 of 5 USD"),
        ("{cpu_hour: 1, currency: EUR}", "at least 0 of 5 EUR"),
    ],
)
def test_plan_says_what_is_estimated_of_what_may_be_spent(
    project: Project, prices: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = project.folder / "limited.yaml"
    where = (project.folder / "c.yaml").read_text()
    file.write_text(f"{where}\nlimits: {{max_price: 5}}\nprices: {prices}\n")
    words = ["plan", str(project.folder / "r.yaml"), "--set", "train.steps=13"]
    assert main([*words, "--cluster", str(file)]) == 0
    assert f"limits: {says}, by the estimate" in capsys.readouterr().out.splitlines()


def test_plan_as_json_is_one_document(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert project.orchestrator("plan", str(project.folder / "r.yaml"), "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["run"] == project.plan.run
    assert document["cluster"] == str(project.folder / "c.yaml")
    assert document["store"] == project.store.storage.url
    assert {i["decision"] for i in document["instances"]} == {"reuse"}


def test_submitting_again_attaches(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert project.orchestrator("submit", str(project.folder / "r.yaml")) == 0
    said = capsys.readouterr()
    assert said.out == f"{project.plan.run}\n"
    assert said.err.splitlines()[-1] == (
        f"run {project.plan.run}: attached to what is there; everything is done"
    )
    assert len(project.run.supervisors()) == 1


def test_no_run_that_was_interrupted_is_said(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert project.orchestrator("resume", "--interrupted") == 0
    assert capsys.readouterr().err == f"no run in {project.store.storage.url} was interrupted\n"


@pytest.mark.parametrize(
    ("variable", "file", "why"),
    [
        ("ORCHESTRATOR_CLUSTER", "c.yaml", "named by $ORCHESTRATOR_CLUSTER"),
        ("RAY_ADDRESS", "cluster_configs/ray.yaml", "RAY_ADDRESS is set"),
    ],
)
def test_a_source_without_a_folder_names_the_file_that_was_chosen(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    variable: str,
    file: str,
    why: str,
) -> None:
    broken.SOUND.write(tmp_path)
    (tmp_path / "cluster_configs").mkdir()
    (tmp_path / file).write_text("backend: local\nstore: s\n")
    monkeypatch.setenv(variable, str(tmp_path / file))
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "r.yaml"]) == 2
    _, line = capsys.readouterr().err.splitlines()
    assert line == (
        f"{Path(file).name}: data.speech: missing; map the source to its folder in "
        f"{tmp_path / file} ({why}), or give another file by --cluster"
    )


def test_plan_counts_what_a_filter_has_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = "corpus.filter.duplicates=drop"
    words = ["plan", *broken.SOUND.write(tmp_path), "--set", given]
    prepared = prepare(tmp_path / "r.yaml", tmp_path / "c.yaml", [given])
    for instance, hours in zip(prepared.plan.corpora, (20.0, 10.0), strict=True):
        facts = {"kept_hours": hours, "sources": {"speech": {"kept_hours": hours}}}
        artifact = prepared.store.artifact(instance.stage, instance.key)
        artifact.publish(inputs=instance.inputs, facts=facts, producer={})
        assert main(words) == 0
        assert f"{hours:.2f}" in capsys.readouterr().out.splitlines()[-1]


def test_plan_says_what_variants_share(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    codebooks = (
        "sweep={of: {small: {tokenizer.num_clusters: 10}, large: {tokenizer.num_clusters: 40}}}"
    )
    words = ["plan", *broken.SOUND.write(tmp_path), "--set", codebooks]
    prepared = prepare(tmp_path / "r.yaml", tmp_path / "c.yaml", [codebooks])
    shared = "2 variants are 14 pieces of work, 16 if each were a run of its own; audio is encoded"
    assert main(words) == 0
    assert f"shared: {shared} 1 time in place of 2" in capsys.readouterr().out.splitlines()
    (corpus,) = prepared.plan.corpora
    artifact = prepared.store.artifact("corpus", corpus.key)
    artifact.publish(inputs=corpus.inputs, facts={"kept_hours": 1234.5}, producer={})
    assert main(words) == 0
    line = f"shared: {shared} 1 time in place of 2: 1,234.50 h in place of 2,469.00 h"
    assert line in capsys.readouterr().out.splitlines()
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["sharing"]["hours_encoded"] == 1234.5
    assert [v["name"] for v in document["variants"]] == ["small", "large"]


def test_plan_estimates_the_costliest_variant(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    swept = "sweep={train.steps: [20, 400, 40]}"
    assert main(["plan", *broken.SOUND.write(tmp_path), "--set", swept]) == 0
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "training: " in x]
    assert line.startswith("variant steps=400, the costliest: training: ")


def test_plan_says_what_each_source_gives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["plan", *broken.SOUND.write(tmp_path)]
    prepared = prepare(tmp_path / "r.yaml", tmp_path / "c.yaml")
    assert main(words) == 0
    assert "recordings" not in capsys.readouterr().out
    facts = {"kept_hours": 1234.5, "num_recordings": 5678, "num_left_out": 9, "num_quarantined": 0}
    (corpus,) = prepared.plan.corpora
    prepared.store.artifact("corpus", corpus.key).publish(
        inputs=corpus.inputs, facts={**facts, "sources": {"speech": facts}}, producer={}
    )
    assert main(words) == 0
    head, row = capsys.readouterr().out.splitlines()[-2:]
    assert head.split() == [
        "source",
        "recordings",
        "left",
        "out",
        "quarantined",
        "hours",
        "tokens",
        "GPU",
        "hours",
    ]
    assert row.split() == ["speech", "5,678", "9", "0", "1,234.50", "<=222.2", "M"]
    assert main([*words, "--json"]) == 0
    (source,) = json.loads(capsys.readouterr().out)["sources"]
    assert (source["name"], source["hours"], source["gpu_hours"]) == ("speech", 1234.5, None)


def test_scripts_of_what_is_done_already_are_none(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert project.orchestrator("plan", str(project.folder / "r.yaml"), "--scripts") == 0
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.endswith("everything is reused; a scheduler would be given nothing\n")


def test_the_same_name_for_other_keys_is_refused(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--set", "train.steps=13", "--name", project.plan.run]
    assert project.orchestrator("submit", str(project.folder / "r.yaml"), *words) == 2
    assert "a run of this name exists with other keys" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    ["..", ".", "a/b", "-x", "[red]x", "a\nb", "a b", "*", ".hidden", "x" * 300, "", "é", "a\n"],
)
def test_a_name_that_is_no_folders_is_refused(
    project: Project, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = project.store.runs()
    assert project.orchestrator("submit", str(project.folder / "r.yaml"), f"--name={name}") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("--name: must be text like ^[A-Za-z0-9]")
    assert project.store.runs() == before


def test_resuming_what_is_done(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert project.orchestrator("resume", project.plan.run) == 0
    assert capsys.readouterr().err == f"run {project.plan.run}: everything is done\n"


@pytest.mark.parametrize("by", ["name", "path"])
def test_status_as_json(project: Project, by: str, capsys: pytest.CaptureFixture[str]) -> None:
    name = project.plan.run if by == "name" else project.run.storage.url
    assert project.orchestrator("status", name, "--json") == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["run"], status["state"]) == (project.plan.run, "succeeded")
    assert [s["name"] for s in status["stages"]] == [i.stage for i in project.plan.instances]


def test_status_for_people(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert project.orchestrator("status", project.plan.run) == 0
    said = capsys.readouterr().out
    assert said.count("reused") == 8
    assert said.splitlines()[-1].startswith("goodput: ")


def test_status_keeps_to_the_width_of_the_terminal(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert project.orchestrator("status", project.plan.run) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("goodput: ") for line in lines)
    assert max(map(len, lines)) <= 80


def test_status_in_a_pipe_has_whole_lines(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    (train,) = (i for i in project.plan.instances if i.stage == "train")
    project.run.begin_attempt(train.id, node="n").finish(state="succeeded")
    assert project.orchestrator("status", project.plan.run) == 0
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("goodput: ")
    assert len(last) > 80


def test_status_as_openmetrics(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert project.orchestrator("status", project.plan.run, "--openmetrics") == 0
    said = capsys.readouterr().out
    state = f'orchestrator_run_state{{run="{project.plan.run}",state="succeeded"}} 1.0\n'
    assert state in said
    assert said.endswith("# EOF\n")
    assert project.orchestrator("status", "--openmetrics") == 2
    assert capsys.readouterr().err == (
        "--openmetrics: no RUN given; name one of `orchestrator status`\n"
    )


def test_status_of_all_runs(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert project.orchestrator("status", "--json") == 0
    assert [r["run"] for r in json.loads(capsys.readouterr().out)] == [project.plan.run]
    assert project.orchestrator("status") == 0
    assert "8/8" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["--json", "--openmetrics"])
def test_a_document_is_not_watched(
    project: Project, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert project.orchestrator("status", project.plan.run, "--watch", form) == 2
    assert capsys.readouterr().err == (
        f"--watch: not with {form}, which is one document; leave one out\n"
    )
    assert project.orchestrator("status", "--watch") == 2
    assert capsys.readouterr().err.startswith("--watch: no RUN given; ")


@pytest.mark.parametrize("name", ["", " "])
def test_a_name_of_nothing(project: Project, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert project.orchestrator("status", name) == 2
    assert capsys.readouterr().err == "RUN: empty; `orchestrator status` lists the runs\n"


def test_the_folder_one_stands_in_is_a_path(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project.run.storage.url)
    assert project.orchestrator("status", ".") == 0
    assert capsys.readouterr().out.startswith(f"{project.plan.run}: succeeded")
    monkeypatch.chdir(project.folder)
    assert project.orchestrator("status", ".") == 2
    assert capsys.readouterr().err.startswith(f"{project.folder.name}: no such run in ")


@pytest.mark.parametrize("seconds", ["nan", "-5", "inf", "0", "soon"])
def test_a_wait_that_is_no_time_is_refused_before_anything_is_struck(
    project: Project, seconds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        project.orchestrator("chaos", project.plan.run, "--kill", "rank", f"--timeout={seconds}")
    assert left.value.code == 2
    line = f"argument --timeout: must be a number of seconds above 0, not {seconds}\n"
    assert capsys.readouterr().err.endswith(line)


@pytest.mark.parametrize(
    "words",
    [
        ("logs", "{run}", "--rank", "0", "trian"),
        ("logs", "--attempt", "1", "{run}", "trian"),
        ("chaos", "{run}", "--kill", "rank", "trian"),
        ("cancel", "--cluster", "{cluster}", "{run}", "trian"),
    ],
)
def test_a_stage_may_stand_after_an_option(
    project: Project, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"run": project.plan.run, "cluster": str(project.folder / "c.yaml")}
    assert project.orchestrator(*(word.format(**names) for word in words)) == 2
    assert capsys.readouterr().err.startswith(f"trian: no such stage in {project.plan.run}")


def test_watching_what_is_over_returns(
    project: Project, capsys: pytest.CaptureFixture[str]
) -> None:
    assert project.orchestrator("status", project.plan.run, "--watch") == 0
    assert f"run {project.plan.run}: succeeded" in capsys.readouterr().out


def test_verify(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert project.orchestrator("verify", project.plan.run) == 0
    said = capsys.readouterr().out
    assert said.count(": ok") == 8
    assert "each of 5 windows used 9 or 10 times: ok" in said
    assert project.orchestrator("verify", project.plan.run, "--json") == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True


def test_verify_says_that_a_run_is_still_running(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = Project(tmp_path)
    run = project.create()
    run.begin_supervisor(process=vars(Process.current()))
    assert project.orchestrator("verify", run.name) == 0
    assert capsys.readouterr().err == f"run {run.name}: still running; verify it again at its end\n"


def test_verify_finds_a_flipped_byte(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = Project(tmp_path)
    project.create()
    pack = next(i for i in project.plan.instances if i.stage == "pack")
    project.store.artifact("pack", pack.key).storage.replace("data.bin", b"0123456780")
    assert project.orchestrator("verify", project.plan.run) == 1
    assert "data.bin: bytes differ from the manifest's sha256" in capsys.readouterr().out


def test_report(project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert project.orchestrator("report", project.plan.run, "-o", str(page)) == 0
    assert capsys.readouterr().out == f"{page}\n"
    assert page.read_text().startswith("<!doctype html>")


def test_a_report_of_one_run_given_twice_is_refused(
    project: Project, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, page = project.plan.run, tmp_path / "page.html"
    assert project.orchestrator("report", name, name, "-o", str(page)) == 2
    assert capsys.readouterr().err == f"{name}: given twice; name different runs\n"
    assert project.orchestrator("report", name, "nobody", "-o", str(page)) == 2
    assert "nobody: no such run" in capsys.readouterr().err
    assert not page.exists()


def test_cancelling_what_is_over(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert project.orchestrator("cancel", project.plan.run) == 0
    assert capsys.readouterr().err == (f"run {project.plan.run}: not running; nothing to cancel\n")
    assert project.orchestrator("cancel", project.plan.run, "trian") == 2
    assert capsys.readouterr().err.startswith(f"trian: no such stage in {project.plan.run}; ")


@pytest.mark.parametrize("verb", ["status", "logs", "cancel", "verify", "report"])
def test_no_such_run(project: Project, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert project.orchestrator(verb, "nope") == 2
    assert capsys.readouterr().err == (
        f"nope: no such run in {project.folder}/store/runs/nope; `orchestrator status` lists them, "
        "--cluster names another store\n"
    )


def test_an_empty_store_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = tmp_path / "empty.yaml"
    where.write_text("backend: local\nstore: empty\n")
    assert main(["status", "--cluster", str(where)]) == 0
    assert f"no run in {tmp_path}/empty; --cluster names another store" in capsys.readouterr().err


def test_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    project = Project(tmp_path)
    run, name = project.create(), project.plan.run
    train = next(i.id for i in project.plan.instances if i.stage == "train")
    for text in ("first\n", "starting\nTraceback (most recent call last):\n  x\nKeyError: 'y'\n"):
        attempt = run.begin_attempt(train)
        attempt.storage.create("driver.log", text.encode())
    attempt.storage.create("rank-00001.log", b"rank one\n")
    where = f"{run.storage.url}/stages/{train}/attempts"

    def said(*words: str) -> str:
        assert project.orchestrator("logs", name, *words) == 0
        return capsys.readouterr().out

    assert said("train").startswith(f"==> {where}/0002/driver.log <==\nstarting\n")
    assert said("train", "--attempt", "1") == f"==> {where}/0001/driver.log <==\nfirst\n"
    assert said(train, "--rank", "1") == f"==> {where}/0002/rank-00001.log <==\nrank one\n"
    assert said("--first-error").startswith(
        f"==> {where}/0002/driver.log:2 <==\nTraceback (most recent call last):\n"
    )
    assert project.orchestrator("logs", name, "trian") == 2


def test_doctor(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    project.orchestrator("doctor")
    lines = capsys.readouterr().out.splitlines()
    assert f"ok    store: {project.folder}/store: exclusive creation works" in lines


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([verb, "--help"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: orchestrator {verb}")


def test_help_lists_the_verbs_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    assert left.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert all(f" {verb} " in said for verb in VERBS)
    assert "exit codes: 0 done, 1 the run failed, 2 the request was wrong" in said


@pytest.mark.parametrize("words", [[], ["frobnicate"], ["plan"], ["plan", "r.yaml", "--nope"]])
def test_a_wrong_command_line_exits_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(words)
    assert left.value.code == 2
    assert "usage: orchestrator" in capsys.readouterr().err


def test_a_store_that_is_another_projects(tmp_path: Path) -> None:
    """Two stores share nothing: what is complete in one is planned anew in the other."""
    Project(tmp_path)
    (tmp_path / "c.yaml").write_text(broken.CLUSTER.replace("store: store", "store: other"))
    prepared = prepare(tmp_path / "r.yaml", tmp_path / "c.yaml")
    assert {i.decision for i in prepared.plan.instances} == {"run"}
    assert Store.open(str(tmp_path / "store")).runs() == ()


DAMAGES = {
    "plan.json": ("{", "{}", "[]", "", "null", '{"instances": []}', '{"instances": [{}]}', "\0"),
    "cluster.yaml": ("{", "[]", "", "backend: no\nstore: s", None),
    "supervisor/0001/attempt.json": ("{", "{}", "[]", '{"process": 5}'),
    "supervisor/0001/end.json": ("{", "[]"),
    "cancel/0001.json": ("[]", "{"),
    "recipe.yaml": ("[]", "{", "", None),
    "submissions/0001/submission.json": ("{", "{}", "[]"),
}
"""A run's files, and what may stand there instead."""


@pytest.mark.parametrize(
    ("path", "text"), [(path, text) for path, texts in DAMAGES.items() for text in texts]
)
def test_a_damaged_run_is_one_line_and_hides_no_other(
    path: str, text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = Project(tmp_path)
    run = project.create()
    sound = prepare(tmp_path / "r.yaml", tmp_path / "c.yaml", name="sound")
    RunFolder(project.store.run_storage("sound")).create(
        sound.plan, sound.recipe, sound.cluster, {}, {}
    )
    if path.startswith("supervisor/"):
        run.begin_supervisor(process=vars(Process.current()))
    run.storage.delete(path)
    if text is not None:
        run.storage.create(path, text.encode())

    assert project.orchestrator("status") == 0
    rows = capsys.readouterr().out.splitlines()
    assert [row for row in rows if row.startswith("sound ") and "8/8" in row]
    (row,) = (row for row in rows if row.startswith(run.name))
    assert project.orchestrator("status", "--json") == 0
    found = {r["run"]: r for r in json.loads(capsys.readouterr().out)}
    assert found["sound"]["state"] == "succeeded"
    assert "unreadable: " not in row or found[run.name]["state"] == "unreadable"

    for verb in ("status", "logs", "resume", "cancel", "verify", "report", "chaos"):
        more = ["--kill", "rank"] if verb == "chaos" else []
        code = project.orchestrator(verb, run.name, *more)
        said = capsys.readouterr().err.splitlines()
        assert code in (0, 1, 2, 3)
        assert len(said) <= 1 or code == 0, verb
        if path == "plan.json":
            assert code == 1
            assert said[0].startswith(f"{run.storage.url}/{path}: ")
            assert "; " in said[0]


@pytest.mark.parametrize("text", ["{", "[]", "null", "5"])
def test_code_of_which_nothing_is_known_is_not_resumed(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = Project(tmp_path)
    run = project.create()
    train = next(i for i in project.plan.instances if i.stage == "train")
    project.store.artifact("train", train.key).storage.delete("MANIFEST.json")
    run.storage.replace("code.json", text.encode())
    assert project.orchestrator("resume", run.name) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{run.storage.url}/code.json: ")
    assert run.supervisors() == ()


@pytest.mark.parametrize("text", ["{", "[]", "{}", "", '{"key": "%"}', '{"key": "%", "facts": 5}'])
def test_a_damaged_artifact_is_one_line_and_hides_no_run(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = Project(tmp_path)
    run = project.create()
    pack = next(i for i in project.plan.instances if i.stage == "pack")
    where = project.store.artifact("pack", pack.key).storage
    where.replace("MANIFEST.json", text.replace("%", pack.key).encode())
    assert project.orchestrator("status") == 0
    said = capsys.readouterr().out
    assert f"unreadable: {where.url}" in said
    assert project.orchestrator("status", run.name) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(where.url)
    assert line.endswith(("folder away", "remove it"))
    assert project.orchestrator("verify", run.name) == 1
    assert capsys.readouterr().out.count(": ok") == 7


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_damaged_artifact_of_another_key_is_no_hindrance(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = Project(tmp_path)
    project.store.storage.create("artifacts/train/aaaaaaaaaaaa/inputs.json", text.encode())
    words = ["plan", str(tmp_path / "r.yaml"), "--set", "train.steps=13"]
    assert project.orchestrator(*words) == 0
    assert "train.steps: 12 -> 13" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("end", "code"), [("failed", 1), ("cancelled", 1), ("succeeded", 0), (None, 0)]
)
@pytest.mark.parametrize("form", [(), ("--json",), ("--openmetrics",)])
def test_status_of_a_run_that_has_ended_in_vain_is_1(
    tmp_path: Path, end: str | None, code: int, form: tuple[str, ...]
) -> None:
    project = Project(tmp_path)
    run = project.create()
    if end != "succeeded":
        shutil.rmtree(project.store.storage.local_root / "artifacts" / "train")
    if end:
        run.begin_supervisor(process=Process.current().__dict__).finish(state=end)
    assert project.orchestrator("status", run.name, *form) == code
    assert project.orchestrator("status") == 0, "a list is no verdict"
