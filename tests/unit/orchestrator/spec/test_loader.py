"""How files, ``extends``, ``--set``, sweeps and the environment become specs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from orchestrator.errors import RequestError
from orchestrator.spec.cluster import Cluster, Resources
from orchestrator.spec.loader import (
    load_cluster,
    load_recipe,
    read_yaml,
    resolve_env,
    variant_recipe,
)
from orchestrator.spec.model import Spec
from orchestrator.spec.recipe import Recipe
from orchestrator.spec.schema import FILES, schema_text
from tests.unit.orchestrator import broken
from tests.unit.orchestrator.recipes import recipe, swept, variants_of

ROOT = Path(__file__).parent.parent.parent.parent.parent
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
CLUSTERS = sorted((ROOT / "cluster_configs").glob("*.yaml"))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


Write = Callable[[str, str], Path]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_of_the_project_loads(path: Path) -> None:
    assert load_recipe(path).name == path.stem


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda p: p.stem)
def test_every_cluster_of_the_project_loads(path: Path) -> None:
    assert load_cluster(path).backend in path.stem


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_no_recipe_names_a_place_of_some_cluster(path: Path) -> None:
    for variant in variants_of(load_recipe(path)):
        recipe = variant.recipe
        text = json.dumps(recipe.model_dump(mode="json"))
        for hub_id in filter(None, (recipe.model.text_model, recipe.encoder.model)):
            text = text.replace(hub_id, hub_id.replace("/", " ", 1))
        assert "/" not in text


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_has_a_cold_arm(path: Path) -> None:
    """By one override; of those that sweep the start, which the override leaves alone, too."""
    variants = variants_of(load_recipe(path, ["model.init=cold"]))
    assert "cold" in {variant.recipe.model.init for variant in variants}


def test_every_study_has_a_small_sibling() -> None:
    names = {path.stem for path in (ROOT / "recipes/studies").glob("*.yaml")}
    large = {name for name in names if not name.endswith("-demo")}
    assert large
    assert names == large | {f"{name}-demo" for name in large}


@pytest.mark.parametrize("path", FILES)
def test_the_schemas_beside_the_files_are_those_of_the_code(path: str) -> None:
    assert (ROOT / path).read_text(encoding="utf-8") == schema_text(path), "run `make schemas`"


@pytest.mark.parametrize("model", [Recipe, Cluster])
def test_every_field_is_described(model: type[Spec]) -> None:
    schema = model.model_json_schema()
    sections = [schema, *schema["$defs"].values()]
    fields = [(s["title"], n, f) for s in sections for n, f in s.get("properties", {}).items()]
    assert fields
    assert [(title, name) for title, name, f in fields if not f.get("description")] == []


def test_a_child_overrides_key_by_key(write: Write) -> None:
    write("base.yaml", broken.RECIPE)
    child = write("sub/child.yaml", "extends: ../base.yaml\nname: child\ntrain: {steps: 5}\n")
    loaded = load_recipe(child)
    assert (loaded.name, loaded.train.steps) == ("child", 5)
    assert loaded.train.context_length == recipe().train.context_length
    assert loaded.model == recipe().model


def test_lists_and_sweeps_are_replaced_whole(write: Write) -> None:
    write("base.yaml", broken.added("sweep: {seed: [1, 2], train.steps: [3, 4]}"))
    child = write("child.yaml", "extends: base.yaml\nsweep: {model.init: [cold]}\n")
    assert load_recipe(child).sweep == {"model.init": ("cold",)}


def test_the_youngest_of_three_wins(write: Write) -> None:
    write("a.yaml", broken.RECIPE)
    write("b.yaml", "extends: a.yaml\nseed: 1\nname: b\n")
    assert load_recipe(write("c.yaml", "extends: b.yaml\nseed: 2\n")).seed == 2
    assert read_yaml(write("d.yaml", "extends: b.yaml\n"))["name"] == "b"


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("train.steps=7", ("train", "steps"), 7),
        ("train.optimizer.lr=1e-3", ("train", "optimizer", "lr"), 0.001),
        ("train.optimizer.lr=1.0e-3", ("train", "optimizer", "lr"), 0.001),
        ("train.optimizer.lr=2E-4", ("train", "optimizer", "lr"), 0.0002),
        ("train.optimizer.lr=.5e-3", ("train", "optimizer", "lr"), 0.0005),
        ("train.steps=1e3", ("train", "steps"), 1000),
        ("model.num_layers=6", ("model", "num_layers"), 6),
        ("model.num_layers=null", ("model", "num_layers"), None),
        ("tokenizer.deduplicate=false", ("tokenizer", "deduplicate"), False),
        ("corpus.snapshot=a=b", ("corpus", "snapshot"), "a=b"),
        ("corpus.languages=[en, fr]", ("corpus", "languages"), ("en", "fr")),
        ("train.checkpoint={every_steps: 3}", ("train", "checkpoint", "every_steps"), 3),
        ("name=a.b", ("name",), "a.b"),
        (" train.steps =7", ("train", "steps"), 7),
    ],
)
def test_overrides(write: Write, override: str, place: tuple[str, ...], value: object) -> None:
    found: object = load_recipe(write("r.yaml", broken.RECIPE), [override])
    for name in place:
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


def test_the_last_override_wins_and_sections_are_made(write: Write) -> None:
    path = write("r.yaml", broken.RECIPE)
    loaded = load_recipe(path, ["train.steps=7", "train.steps=8", "evaluate.perplexity.seed=3"])
    assert (loaded.train.steps, loaded.evaluate.perplexity.seed) == (8, 3)


def test_an_override_may_add_to_the_sweep(write: Write) -> None:
    loaded = load_recipe(write("r.yaml", broken.RECIPE), ["sweep.train.optimizer.lr=[1e-3, 3e-3]"])
    assert loaded.sweep == {"train.optimizer.lr": (0.001, 0.003)}


def test_swept_values_keep_their_types() -> None:
    values = [True, 1.5, "a", None]
    found = swept(recipe(), **{"model.num_layers": [None, 3]}).sweep["model.num_layers"]
    assert found == (None, 3)
    raw = {**yaml.safe_load(broken.RECIPE), "sweep": {"name": values}}
    assert [type(v) for v in Recipe.model_validate(raw).sweep["name"]] == [
        bool,
        float,
        str,
        type(None),
    ]


def test_a_variant_has_no_sweep_and_leaves_its_recipe_alone() -> None:
    base = swept(recipe(), seed=[1, 2])
    variant = variant_recipe(base, {"seed": 2})
    assert (variant.seed, variant.sweep) == (2, {})
    assert base.seed == 0


def test_specs_are_frozen() -> None:
    with pytest.raises(ValidationError):
        recipe().seed = 1


def test_paths_of_a_cluster_are_relative_to_its_file(write: Write, tmp_path: Path) -> None:
    loaded = load_cluster(
        write(
            "conf/c.yaml",
            "backend: local\nstore: ../store\ndata: {a: data, b: /abs, c: '${env:X}/y'}\n"
            "models: {m: ../m}\nscratch: tmp\n",
        )
    )
    assert loaded.store == str(tmp_path / "store")
    assert loaded.data == {"a": str(tmp_path / "conf/data"), "b": "/abs", "c": "${env:X}/y"}
    assert loaded.models == {"m": str(tmp_path / "m")}
    assert loaded.scratch == str(tmp_path / "conf/tmp")


def test_a_source_may_have_its_container(write: Write, tmp_path: Path) -> None:
    """What is written plainly stays so where runs record it."""
    data = "data: {a: x, b: {root: x}, c: {root: 's3://x/y', container: tar}}\n"
    loaded = load_cluster(write("c.yaml", f"backend: local\nstore: store\n{data}"))
    root = str(tmp_path / "x")
    assert loaded.data_locations == (root, root, "s3://x/y")
    assert [d.container for d in loaded.data_roots.values()] == ["folder", "folder", "tar"]
    assert loaded.model_dump(mode="json", exclude_unset=True)["data"] == {
        "a": root,
        "b": {"root": root},
        "c": {"root": "s3://x/y", "container": "tar"},
    }


@pytest.mark.parametrize(
    ("image", "loaded"),
    [("./x.sif", "{folder}/x.sif"), ("ubuntu:24.04", "ubuntu:24.04"), ("docker://x", "docker://x")],
)
def test_an_image_is_a_path_only_when_it_begins_like_one(
    write: Write, tmp_path: Path, image: str, loaded: str
) -> None:
    path = write("c.yaml", f"{broken.CLUSTER}environment: {{venv: v, container: '{image}'}}\n")
    environment = load_cluster(path).environment
    assert environment.container == loaded.replace("{folder}", str(tmp_path))
    assert environment.venv == str(tmp_path / "v")


@pytest.mark.parametrize("url", ["s3://bucket/x", "gs://bucket/x", "memory://x"])
def test_a_url_stays_as_it_is(write: Write, url: str) -> None:
    assert load_cluster(write("c.yaml", f"backend: ray\nstore: {url}\n")).store == url


def test_a_home_folder_is_found(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert (
        load_cluster(write("c.yaml", "backend: local\nstore: ~/store\n")).store == "/home/me/store"
    )


def test_environment_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A", "1")
    monkeypatch.setenv("B", "${env:A}")
    assert resolve_env("x/${env:A}/${env:B}", where="w") == "x/1/${env:A}"
    assert resolve_env("$A ${A}", where="w") == "$A ${A}"
    with pytest.raises(RequestError) as raised:
        resolve_env("${env:NOPE}", where="c.yaml: store")
    assert str(raised.value) == (
        "c.yaml: store: environment variable NOPE is not set; export it and try again"
    )


@pytest.mark.parametrize("here", ["data", "./data", "~/data", ""])
def test_a_place_that_the_environment_gives_is_no_relative_path(
    here: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROOT", here)
    with pytest.raises(RequestError) as raised:
        resolve_env("${env:ROOT}", where="cluster: scratch")
    assert str(raised.value) == (
        f"cluster: scratch: ${{env:ROOT}} is {here!r}, no absolute path or URL; export one that is"
    )
    assert resolve_env("${env:ROOT}", where="w", is_place=False) == here
    assert resolve_env("/x/${env:ROOT}", where="w") == f"/x/{here}"


@pytest.mark.parametrize("here", ["/data", "s3://bucket"])
def test_a_place_that_the_environment_gives(here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOT", here)
    assert resolve_env("${env:ROOT}/x", where="w") == f"{here}/x"


def test_resources_of_a_stage_that_is_not_named_are_the_defaults() -> None:
    raw = {"backend": "local", "store": "s", "resources": {"train": {"nodes": 2}}}
    where = Cluster.model_validate(raw)
    assert where.resources_of("train").nodes == 2
    assert where.resources_of("pack") == Resources()


@pytest.mark.parametrize(
    ("resources", "world_size"),
    [
        (Resources(), 1),
        (Resources(nodes=2, ranks_per_node=3), 6),
        (Resources(nodes=4, gpus_per_node=8, ranks_per_node=3), 32),
    ],
)
def test_world_size(resources: Resources, world_size: int) -> None:
    assert resources.world_size == world_size
