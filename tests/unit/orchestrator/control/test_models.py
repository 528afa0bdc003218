"""Pins, configs and digests of the models that a recipe names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.cli.main import main
from orchestrator.control import models
from orchestrator.control.models import (
    WEIGHTS,
    models_of,
    moving_revisions,
    unfit_models,
    wrong_digests,
)
from orchestrator.control.request import prepare, submit
from orchestrator.errors import SpecErrors
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.store import Store
from orchestrator.spec.loader import variant_recipe
from tests.unit.orchestrator import broken
from tests.unit.orchestrator.hub import hub_of
from tests.unit.orchestrator.recipes import pretrained_recipe, recipe, swept, variants_of

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ELSEWHERE = "write a commit, 40 hex digits, as the list of commits on the model's page has them"


def unfit(project: Path, *overrides: str) -> list[str]:
    return unfit_models(prepare(project / "r.yaml", project / "c.yaml", overrides))


def test_each_model_is_named_once() -> None:
    swept_models = variants_of(swept(recipe(), **{"model.init": ["twist", "cold"]}))
    assert [m.name for m in models_of(swept_models)] == ["hubert", "tiny-lm"]
    assert [m.section for m in models_of(variants_of(pretrained_recipe()))] == ["model"]


@pytest.mark.parametrize("name", ["main", "v1.0", "refs/pr/3", "0123456", COMMIT.upper(), ""])
def test_what_can_move_is_no_pin(name: str) -> None:
    variants = variants_of(recipe(**{"model.revision": name, "encoder.revision": COMMIT}))
    assert moving_revisions(variants, "r.yaml") == [
        f"r.yaml: model.revision: {name!r} can move; {ELSEWHERE}"
    ]


def test_the_remedy_is_todays_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    variants = variants_of(recipe(**{"model.text_model": "a/b", "model.revision": "main"}))
    answer = json.dumps({"sha": COMMIT}).encode()
    with hub_of({"/api/models/a/b/revision/main": answer}, monkeypatch):
        assert moving_revisions(variants, "r.yaml") == [
            "r.yaml: model.revision: 'main' can move; write the commit that it is at today, "
            f"{COMMIT}"
        ]


def test_a_digest_alone_does_not_pin_the_rest_of_a_hubs_model(project: Path) -> None:
    assert unfit(project, "model.text_model=a/b") == [
        "r.yaml: model.revision: missing, and a/b comes from the hub, where it can move; "
        f"{ELSEWHERE}"
    ]
    assert unfit(project, "model.text_model=a/b", f"model.revision={COMMIT}") == []


def test_a_hubs_config_is_judged_as_a_folders_is(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(project / "cache"))
    config = json.dumps(broken.CONFIGS["hubert"]).encode()
    asked = ("model.text_model=a/b", f"model.revision={COMMIT}")
    with hub_of({f"/a/b/resolve/{COMMIT}/config.json": config}, monkeypatch):
        assert unfit(project, *asked) == [
            "r.yaml: model.text_model: a/b is no causal LM (hubert); name a causal LM, such as "
            "facebook/opt-350m"
        ]


def test_only_the_variants_that_are_wrong_are_named(project: Path) -> None:
    sizes = "sweep.train.context_length=[32, 128]"
    assert unfit(project, sizes) == [
        "r.yaml: train.context_length: 128 tokens, but tiny-lm has 64 positions; give at most 64, "
        "or a text model of longer context"
    ]


def test_weights_are_compared_with_their_digest_before_anything_is_created(project: Path) -> None:
    (project / "tiny-lm" / WEIGHTS).write_bytes(b"other weights")
    request = prepare(project / "r.yaml", project / "c.yaml")
    with pytest.raises(SpecErrors) as raised:
        submit(request)
    (line,) = raised.value.problems
    assert line.startswith(f"r.yaml: model.sha256: {project}/tiny-lm/{WEIGHTS} has ")
    assert line.endswith("; give the digest of the model you mean, or fetch it again")
    assert request.store.runs() == ()


def test_a_codebook_is_compared_with_its_digest_too(project: Path) -> None:
    (project / "tiny-lm" / "km.npy").write_bytes(b"other centroids")
    given = f"tokenizer.codebook={{model: tiny-lm, file: km.npy, sha256: {'c' * 64}}}"
    request = prepare(project / "r.yaml", project / "c.yaml", (given,))
    assert unfit_models(request) == []
    (line,) = wrong_digests(request)
    assert line.startswith(f"r.yaml: tokenizer.codebook.sha256: {project}/tiny-lm/km.npy has ")


def test_a_hubs_codebook_needs_one_pin_alone(project: Path) -> None:
    for pin in (f"sha256: {'c' * 64}", f"revision: {COMMIT}"):
        assert unfit(project, f"tokenizer.codebook={{model: a/b, file: km.bin, {pin}}}") == []


def test_digests_of_what_is_done_already_are_not_asked_for(project: Path) -> None:
    (project / "tiny-lm" / WEIGHTS).write_bytes(b"other weights")
    request = prepare(project / "r.yaml", project / "c.yaml")
    store = Store.open(request.store.storage.url)
    for i in request.plan.instances:
        store.artifact(i.stage, i.key).publish(inputs=i.inputs, facts={}, producer={})
    again = prepare(project / "r.yaml", project / "c.yaml")
    assert models.wrong_digests(again) == []
    assert len(models.wrong_digests(request)) == 1


def test_a_run_with_a_branch_can_still_be_read(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was submitted before branches were refused."""
    request = prepare(project / "r.yaml", project / "c.yaml")
    run = RunFolder(request.store.run_storage("before"))
    moving = variant_recipe(request.recipe, {"model.revision": "main"})
    run.create(request.plan, moving, request.cluster, {}, {})
    assert run.variants()[0].recipe.model.revision == "main"
    for words in (["status"], ["verify"], ["report", "-o", str(project / "page.html")]):
        verb, *options = words
        main([verb, "before", *options, "--cluster", str(project / "c.yaml")])
        assert "can move" not in capsys.readouterr().err
    assert (project / "page.html").exists()


@pytest.mark.parametrize("kind", ["a snapshot", "a link to one", "a download"])
def test_a_folder_of_another_commit_is_no_pin(project: Path, kind: str) -> None:
    """The hub's own tools say which commit a folder holds."""
    folder = project / "tiny-lm"
    if kind == "a download":
        notes = folder / ".cache" / "huggingface" / "download"
        notes.mkdir(parents=True)
        (notes / "config.json.metadata").write_text(f"{COMMIT}\netag\n1.0\n")
    else:
        snapshot = project / "models--a--b" / "snapshots" / COMMIT
        snapshot.parent.mkdir(parents=True)
        folder.rename(snapshot)
        folder.symlink_to(snapshot)
        if kind == "a snapshot":
            cluster_file = project / "c.yaml"
            text = cluster_file.read_text().replace("tiny-lm: tiny-lm", f"tiny-lm: {snapshot}")
            cluster_file.write_text(text)
            folder = snapshot
    assert unfit(project, f"model.revision={COMMIT}") == []
    assert unfit(project, f"model.revision={'f' * 40}") == [
        f"r.yaml: model.revision: {folder} holds commit {COMMIT}; write that, or fetch the one "
        "that you mean"
    ]
