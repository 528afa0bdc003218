"""Which instances a recipe needs, which of them share a job, and why each runs or not."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.plan.graph import Node, nodes_of
from orchestrator.plan.planner import Finder, Found, Plan
from orchestrator.plan.stages import BY_NAME, STAGES, Facts
from orchestrator.spec.recipe import Recipe
from tests.unit.orchestrator.recipes import plan_of, pretrained_recipe, recipe, swept

COMPLETE = Found(complete=True)


def holding(there: Mapping[str, Found]) -> Finder:
    """A store in which stages (by name) are as said."""
    return lambda keys: {
        i: there[address.split("/")[0]]
        for i, address in keys.items()
        if address.split("/")[0] in there
    }


def decisions(plan: Plan) -> dict[str, tuple[str, str]]:
    return {i.stage: (i.decision, i.reason) for i in plan.instances}


def test_one_variant_has_one_instance_a_stage_in_data_order() -> None:
    plan = plan_of(recipe())
    assert [i.stage for i in plan.instances] == [node.name for node in nodes_of(recipe())]
    assert all(i.id == f"{i.node}-{i.key[:12]}" == i.leader for i in plan.instances)
    assert plan.variants == (
        {"name": "base", "overrides": {}, "instances": {i.stage: i.id for i in plan.instances}},
    )


def test_needs_are_the_upstream_instances() -> None:
    plan = plan_of(recipe())
    ids = {i.stage: i.id for i in plan.instances}
    needs = {i.stage: i.needs for i in plan.instances}
    assert needs["corpus"] == needs["encoder"] == {}
    assert needs["tokenize"] == {s: ids[s] for s in ("corpus", "encoder", "codebook")}
    assert needs["train"] == {s: ids[s] for s in ("pack", "codebook")}
    for score in ("perplexity", "continuations"):
        assert needs[score] == {s: ids[s] for s in ("pack", "train")}


def test_each_iteration_of_pretraining_needs_its_targets_and_the_model_before() -> None:
    iterations = [{"targets": "mfcc", "steps": 5}, {"targets": 1, "steps": 7}]
    plan = plan_of(pretrained_recipe(**{"encoder.pretrain.iterations": iterations}))
    ids = {i.node: i.id for i in plan.instances}
    needs = {i.node: i.needs for i in plan.instances}
    corpus = {"corpus": ids["corpus"]}
    assert needs["targets.1"] == corpus
    assert needs["pretrain.1"] == {**corpus, "targets": ids["targets.1"]}
    assert needs["targets.2"] == {**corpus, "model": ids["pretrain.1"]}
    assert needs["pretrain.2"] == {**corpus, "targets": ids["targets.2"]}
    assert needs["encoder"] == {"model": ids["pretrain.2"]}
    steps = {i.node: i.steps for i in plan.instances if i.stage == "pretrain"}
    assert steps == {"pretrain.1": 5, "pretrain.2": 7}


def test_two_nodes_with_one_key_are_one_instance() -> None:
    """Neither a node's name nor those of what it reads are in its key."""

    def twice(one: Recipe) -> list[Node]:
        nodes = list(nodes_of(one))
        tokenize = next(n for n in nodes if n.name == "tokenize")
        nodes.append(replace(tokenize, part="again"))
        again = {"pack": "pack.again", "codebook": "codebook"}
        pack = Node(stage=BY_NAME["pack"], part="again", inputs={"tokenize": "tokenize.again"})
        return [*nodes, pack, Node(stage=BY_NAME["train"], part="again", inputs=again)]

    plan = plan_of(recipe(), nodes_of=twice)
    assert plan.instances == plan_of(recipe()).instances
    chosen = plan.variants[0]["instances"]
    assert [chosen[f"{n}.again"] for n in ("tokenize", "pack", "train")] == [
        chosen[n] for n in ("tokenize", "pack", "train")
    ]


def test_a_stage_may_stand_twice_in_a_variant() -> None:
    """With other inputs it is another instance, with a job of its own."""

    def with_a_suite(one: Recipe) -> list[Node]:
        nodes = list(nodes_of(one))
        encoder = {"encoder": "encoder", "codebook": "codebook"}
        own = Node(stage=BY_NAME["tokenize"], part="own", inputs={"corpus": "pack", **encoder})
        return [*nodes, own]

    plan = plan_of(recipe(), nodes_of=with_a_suite)
    first, second = plan.chosen("tokenize")
    assert (first.node, second.node) == ("tokenize", "tokenize.own")
    assert second.id == second.leader == f"tokenize.own-{second.key[:12]}"
    assert second.needs["corpus"] == plan.chosen("pack")[0].id
    assert plan.chosen("tokenize.own") == (second,)


def test_variants_share_what_they_agree_on() -> None:
    plan = plan_of(swept(recipe(), **{"model.init": ["twist", "cold"], "seed": [1, 2]}))
    counts = {s.name: sum(i.stage == s.name for i in plan.instances) for s in STAGES}
    assert counts["corpus"] == counts["pack"] == 1
    assert counts["train"] == counts["perplexity"] == 4
    pack = next(i for i in plan.instances if i.stage == "pack")
    assert pack.variants == (
        "init=twist,seed=1", "init=twist,seed=2", "init=cold,seed=1", "init=cold,seed=2",
    )  # fmt: skip


@pytest.mark.parametrize(
    "sweep",
    [
        {"tokenizer.num_clusters": [20, 40, 60, 80]},
        {"encoder.layer": [2, 1, 3, 4]},
        {"encoder.output": ["after_residual", "before_residual"], "encoder.layer": [1, 2]},
        {"tokenizer.num_clusters": [20, 40], "encoder.layer": [1, 2]},
    ],
)
def test_codebooks_and_units_of_one_encoder_share_a_pass_each(sweep: dict[str, list[Any]]) -> None:
    plan = plan_of(swept(recipe(), **sweep))
    for stage in ("codebook", "tokenize"):
        own = [i for i in plan.instances if i.stage == stage]
        assert len(own) == 4
        assert {i.leader for i in own} == {own[0].id}
        assert plan.group(own[0].id) == tuple(own)
    assert len({i.leader for i in plan.instances if i.stage == "train"}) == 4


@pytest.mark.parametrize(
    "sweep",
    [
        {"tokenizer.fit_hours": [1.0, 2.0]},
        {"tokenizer.seed": [0, 1]},
        {"encoder.sha256": ["0" * 64, "1" * 64]},
        {"corpus.data_fraction": [1.0, 0.5]},
    ],
)
def test_another_sample_or_encoder_is_another_pass(sweep: dict[str, list[Any]]) -> None:
    codebooks = plan_of(swept(recipe(), **sweep)).chosen("codebook")
    assert [i.leader for i in codebooks] == [i.id for i in codebooks]
    assert len(codebooks) == 2


def test_another_precision_or_deduplication_is_another_pass() -> None:
    for key, values in (("encoder.precision", ["fp32", "bf16"]), ("tokenizer.deduplicate", [1, 0])):
        tokenize = plan_of(swept(recipe(), **{key: values})).chosen("tokenize")
        assert [i.leader for i in tokenize] == [i.id for i in tokenize]
        assert len(tokenize) == 2


def test_what_a_published_codebook_is_refused_for_is_no_matter_of_others() -> None:
    given = {"model": "km", "file": "km.npy", "sha256": "0" * 64}
    plan = plan_of(swept(recipe(**{"tokenizer.codebook": given}), **{"encoder.layer": [1, 2]}))
    codebooks = plan.chosen("codebook")
    assert [i.leader for i in codebooks] == [i.id for i in codebooks]
    assert len(codebooks) == 2
    assert len({i.leader for i in plan.chosen("tokenize")}) == 1


def test_the_leader_comes_first_in_its_group() -> None:
    plan = plan_of(swept(recipe(), **{"tokenizer.num_clusters": [60, 20]}))
    leader = next(i for i in plan.instances if i.stage == "tokenize").leader
    assert plan.group(leader)[0].id == leader
    assert plan.instance(leader).id == leader


def test_an_empty_store_runs_everything_for_no_other_reason() -> None:
    assert set(decisions(plan_of(recipe())).values()) == {("run", "nothing like it in the store")}


def test_what_is_complete_is_reused() -> None:
    plan = plan_of(recipe(), found=holding({s.name: COMPLETE for s in STAGES}))
    assert set(decisions(plan).values()) == {("reuse", "complete in the store")}
    assert next(i for i in plan.instances if i.stage == "train").step == 12


def test_half_done_shards_and_steps_are_resumed() -> None:
    there = {
        "corpus": Found(complete=True, facts={"num_shards": 7}),
        "tokenize": Found(complete=False, shards_done=3),
        "train": Found(complete=False, step=8),
    }
    plan = plan_of(recipe(), found=holding(there))
    assert decisions(plan)["tokenize"] == ("resume", "3 of 7 shards")
    assert decisions(plan)["train"] == ("resume", "step 8 of 12")
    rows = {i.stage: i for i in plan.instances}
    assert (rows["tokenize"].shards_done, rows["tokenize"].shards_total) == (3, 7)
    assert (rows["train"].step, rows["train"].steps) == (8, 12)


def test_shards_of_an_unknown_total() -> None:
    plan = plan_of(recipe(), found=holding({"tokenize": Found(complete=False, shards_done=3)}))
    assert decisions(plan)["tokenize"] == ("resume", "3 of ? shards")


def test_finished_units_count_all_shards() -> None:
    there = {"tokenize": Found(complete=True, facts={"num_shards": 5})}
    plan = plan_of(recipe(), found=holding(there))
    assert next(i for i in plan.instances if i.stage == "tokenize").shards_done == 5


def test_a_miss_names_the_input_that_changed_all_the_way_down() -> None:
    old = plan_of(recipe())
    known = {i.stage: (i.inputs,) for i in old.instances}
    done = {i.key for i in old.instances}

    def found(keys: Mapping[str, str]) -> dict[str, Found]:
        return {i: Found(complete=a.split("/")[1] in done) for i, a in keys.items()}

    new = plan_of(
        recipe(**{"tokenizer.num_clusters": 40}), found=found, known_inputs=known.__getitem__
    )
    cause = "tokenizer.num_clusters: 20 -> 40"
    said = decisions(new)
    assert said["corpus"] == said["encoder"] == ("reuse", "complete in the store")
    for stage in ("codebook", "tokenize", "pack", "train", "perplexity"):
        assert said[stage] == ("run", cause), stage


def test_what_another_recipe_left_explains_nothing() -> None:
    """A published encoder on other speech, where all that is known was pretrained."""
    sources = [{"name": "other", "language": "fr", "lowpass_hz": 4000}]
    other = pretrained_recipe(**{"corpus.sources": sources, "corpus.languages": ["fr"]})
    known = {i.stage: (i.inputs,) for i in plan_of(other, facts=Facts()).instances}
    plan = plan_of(recipe(), known_inputs=known.__getitem__)
    assert {i.reason for i in plan.instances} == {"nothing like it in the store"}


def test_what_is_made_of_something_new_is_new() -> None:
    """Though only the key of what it is made of differs."""
    known = {i.stage: (i.inputs,) for i in plan_of(pretrained_recipe()).instances}
    reasons = {
        i.stage: i.reason for i in plan_of(recipe(), known_inputs=known.__getitem__).instances
    }
    assert reasons["encoder"] == reasons["train"] == "nothing like it in the store"


def test_many_changed_inputs_are_counted() -> None:
    known = {i.stage: (i.inputs,) for i in plan_of(recipe()).instances}
    values = {"train.steps": 13, "train.optimizer.lr": 0.001, "seed": 7, "model.init_std": 0.5}
    plan = plan_of(recipe(**values), known_inputs=known.__getitem__)
    assert decisions(plan)["train"][1].endswith("; and 1 more")


def test_several_changed_inputs_are_all_named() -> None:
    old = plan_of(recipe())
    known = {i.stage: (i.inputs,) for i in old.instances}
    other = recipe(**{"train.steps": 13, "train.optimizer.lr": 0.001})
    reason = decisions(plan_of(other, known_inputs=known.__getitem__))["train"][1]
    assert reason == "train.optimizer.lr: 0.0004 -> 0.001; train.steps: 12 -> 13"


def longer(steps: int, *others: tuple[int, list[int]], **values: object) -> Plan:
    """The plan of so many steps, where trainings of other lengths have left checkpoints."""
    saved = {}
    for total, there in others:
        plan = plan_of(recipe(**{"train.steps": total, **values}))
        saved.update({i.key: (i.inputs, there) for i in plan.instances if i.stage == "train"})
    known = [inputs for inputs, _ in saved.values()]
    return plan_of(
        recipe(**{"train.steps": steps, **values}),
        known_inputs=lambda stage: known if stage == "train" else (),
        checkpoint_steps=lambda _, key: saved[key][1],
    )


def test_more_steps_extend_what_is_there() -> None:
    (before,) = plan_of(recipe(**{"train.steps": 41_200})).chosen("train")
    plan = longer(60_000, (41_200, [41_000, 41_200]))
    (train,) = plan.chosen("train")
    assert train.extends == before.id
    assert (train.decision, train.step) == ("resume", 41_200)
    assert train.reason == f"extends {before.id}, step 41,200 of 60,000"
    assert decisions(plan)["perplexity"][1] == "nothing like it in the store"


def test_of_several_lengths_the_newest_step_is_extended() -> None:
    for others, step in (
        ([(8, [4, 8]), (10, [5, 10])], 10),
        ([(8, [4, 8]), (10, [5])], 8),
        ([(8, [4, 8]), (40, [9, 30, 40])], 9),
        ([(40, [12, 40]), (8, [])], 0),
    ):
        (train,) = longer(12, *others).chosen("train")
        assert train.step == step
        assert bool(train.extends) == bool(step)


def test_a_cosine_begins_anew_and_the_plan_says_why() -> None:
    (train,) = longer(12, (8, [4, 8]), **{"train.schedule.kind": "cosine"}).chosen("train")
    assert (train.decision, train.step, train.extends) == ("run", 0, "")
    assert train.reason.startswith("train.steps: 8 -> 12; cannot extend train-")
    assert train.reason.endswith(
        "the cosine schedule depends on train.steps from its first step on"
    )


def test_pretraining_begins_anew_and_the_plan_says_why() -> None:
    def pretraining(steps: int, **how: object) -> Plan:
        iterations = [{"targets": "mfcc", "steps": steps}]
        return plan_of(pretrained_recipe(**{"encoder.pretrain.iterations": iterations}), **how)

    (before,) = pretraining(5).chosen("pretrain")
    plan = pretraining(
        9,
        known_inputs=lambda stage: [before.inputs] if stage == "pretrain" else (),
        checkpoint_steps=lambda *_: [5],
    )
    (longer,) = plan.chosen("pretrain")
    assert longer.decision == "run"
    assert longer.reason.endswith("pretraining's learning rate falls towards its last step")


def test_what_has_steps_of_its_own_extends_nothing() -> None:
    known = [i.inputs for i in plan_of(recipe(**{"train.steps": 8})).chosen("train")]
    plan = plan_of(
        recipe(),
        found=holding({"train": Found(complete=False, step=2)}),
        known_inputs=lambda stage: known if stage == "train" else (),
        checkpoint_steps=lambda *_: [8],
    )
    assert decisions(plan)["train"] == ("resume", "step 2 of 12")


def test_a_plan_survives_json() -> None:
    plan = plan_of(swept(recipe(), **{"tokenizer.num_clusters": [20, 40], "model.init": ["cold"]}))
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_a_plan_that_knows_no_nodes_has_one_to_a_stage() -> None:
    plan = plan_of(swept(recipe(), **{"model.init": ["twist", "cold"]}))
    raw = json.loads(json.dumps(plan.to_json()))
    for instance in raw["instances"]:
        del instance["node"]
    assert Plan.from_json(raw) == plan


def test_instances_are_chosen_by_stage_node_or_id() -> None:
    plan = plan_of(recipe())
    second = replace(plan.instances[0], id="corpus.more-0123456789ab", node="corpus.more")
    plan = replace(plan, instances=(*plan.instances, second))
    assert [i.node for i in plan.chosen("corpus")] == ["corpus", "corpus.more"]
    assert plan.chosen("corpus.more") == plan.chosen(second.id) == (second,)
    assert plan.chosen(None) == plan.instances
    assert plan.chosen("more") == ()
    assert {"corpus", "corpus.more", second.id} < set(plan.names)
    assert (plan.instances[0].part, second.part) == ("", "more")


def test_the_run_is_named_by_recipe_and_keys() -> None:
    name = plan_of(recipe()).run
    assert name.startswith("small-")
    assert len(name) == len("small-") + 8
    assert plan_of(recipe()).run == name
    assert plan_of(recipe(**{"train.checkpoint.every_steps": 3})).run == name
    assert plan_of(recipe(**{"train.steps": 13})).run != name
    assert plan_of(recipe(), run="mine").run == "mine"


def test_the_order_of_a_sweep_does_not_rename_the_run() -> None:
    one, other = ([1, 2], [2, 1])
    runs = {plan_of(swept(recipe(), seed=values)).run for values in (one, other)}
    assert len(runs) == 1


def test_the_plan_of_a_sweep(golden: Callable[[str, str], None]) -> None:
    sweep = {"tokenizer.num_clusters": [20, 40], "model.init": ["twist", "cold"]}
    plan = plan_of(swept(recipe(), **sweep))
    golden("plan_sweep.json", json.dumps(plan.to_json(), indent=1, sort_keys=True) + "\n")
