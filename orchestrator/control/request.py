"""From a recipe file to a run that is under way: plan, refuse what cannot be, create, start.

`prepare` looks things up and plans; `submit` sends exactly what was planned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path

from orchestrator.control.cluster_choice import open_store
from orchestrator.control.code_snapshot import code_origin, code_snapshot, require_executable
from orchestrator.control.executor import (
    Request,
    Started,
    executor_of,
    observe,
    require_submittable,
)
from orchestrator.control.fingerprint import (
    fingerprint,
    fingerprint_alignments,
    fingerprint_suite,
)
from orchestrator.control.models import moving_revisions, wrong_digests
from orchestrator.control.requirements import (
    impossible_splits,
    impossible_workers,
    missing,
    missing_hook,
    root_of,
    unfit_containers,
    unfit_variables,
    unmapped_sources,
)
from orchestrator.errors import (
    INTERRUPTIONS,
    BackendError,
    Cause,
    RequestError,
    SpecErrors,
    os_words,
)
from orchestrator.ledger.bucket_path import BucketPath
from orchestrator.ledger.run import RunFolder
from orchestrator.ledger.spending import spending
from orchestrator.ledger.store import Store, require_usable
from orchestrator.ledger.stuck_files import answer_within_s
from orchestrator.plan.graph import nodes_of, nodes_until
from orchestrator.plan.planner import Variant, make_plan
from orchestrator.plan.stages import Facts
from orchestrator.spec.cluster import Cluster, Container
from orchestrator.spec.loader import (
    load_cluster,
    load_recipe,
    variant_recipe,
)
from orchestrator.spec.recipe import Recipe, Source
from orchestrator.spec.sweep import sweep_points


class ClusterUsed(Enum):
    """Which cluster file a run goes on with."""

    SAME = "the one that it has, and that was given"
    GIVEN = "the one that was given, in place of another"
    OWN = "the one that it has, in place of what was given, as it is at work"


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """A run that somebody works on, or that is done."""

    run: RunFolder
    is_new: bool
    """False when it was there before."""
    cluster: ClusterUsed
    started: Started


def prepare(
    recipe_file: Path,
    cluster_file: Path,
    overrides: Sequence[str] = (),
    name: str | None = None,
    *,
    until: str | None = None,
    why: str = "",
) -> Request:
    """The plan of a recipe on a cluster; ``why`` this cluster file was chosen.

    ``until``: the stage or node to stop after; all are planned when absent.

    Raises RequestError or SpecErrors; BackendError when the store is out of reach.
    """
    recipe = load_recipe(recipe_file, overrides)
    cluster = load_cluster(cluster_file)
    store = open_store(cluster)
    variants = tuple(
        Variant(
            name=point.name,
            overrides=point.overrides,
            recipe=variant_recipe(recipe, point.overrides, where=recipe_file.name, name=point.name),
        )
        for point in sweep_points(recipe.sweep)
    )
    if problems := moving_revisions(variants, recipe_file.name):
        raise SpecErrors(problems)
    chosen = f"{cluster_file} ({why})" if why else str(cluster_file)
    recipes = tuple(variant.recipe for variant in variants)
    facts = _facts(recipes, cluster, cluster_file.name, chosen)
    plan = make_plan(
        variants,
        facts,
        found=store.find,
        known_inputs=store.inputs_of,
        checkpoint_steps=store.checkpoint_steps,
        run=name,
        nodes_of=partial(nodes_until, until=until) if until else nodes_of,
    )
    return Request(
        recipe=recipe,
        recipe_file=recipe_file,
        cluster=cluster,
        cluster_file=cluster_file,
        chosen=chosen,
        variants=variants,
        store=store,
        plan=plan,
    )


def submit(request: Request) -> Submitted:
    """Create the run, or attach to it, and start what is missing.

    A run at which nobody works goes on with the request's cluster file.

    Raises SpecErrors with everything that keeps it from running, BackendError when the store cannot
    do what a run needs.
    """
    if problems := missing(request):
        raise SpecErrors(problems)
    require_submittable(request.cluster)
    if problems := wrong_digests(request):
        raise SpecErrors(problems)
    require_usable(request.store.storage)  # before a folder is made of which half would stay
    run = RunFolder(request.store.run_storage(request.plan.run))
    code = code_snapshot()
    is_new = run.create(request.plan, request.recipe, request.cluster, code, code_origin(code))
    used = ClusterUsed.SAME if is_new else _cluster_used(run, request)
    if used is ClusterUsed.GIVEN:
        run.move(request.cluster)
    return Submitted(run=run, is_new=is_new, cluster=used, started=start(run, request.store))


def _cluster_used(run: RunFolder, request: Request) -> ClusterUsed:
    """Whose cluster file counts; of a run that is done or elsewhere, none does."""
    is_over = run.moved or request.store.has(*run.plan().instances)
    if is_over or request.cluster == run.cluster():
        return ClusterUsed.SAME
    observed = observe(run)
    is_left = not observed.is_alive and not observed.unknown_jobs()
    return ClusterUsed.GIVEN if is_left else ClusterUsed.OWN


def start(run: RunFolder, store: Store) -> Started:
    """Start what is missing of a run. Raises RequestError when that cannot be done from here."""
    run.require_here()
    cluster = run.cluster()
    require_submittable(cluster)
    if not store.has(*run.plan().instances):
        require_executable(run)
        require_within_limits(run, cluster)
        run.storage.sweep_old()  # of processes that were killed
        require_usable(store.storage)
    require_variables(run, cluster)
    return executor_of(cluster).start(run, store)


def interrupted(store: Store, cluster: Cluster) -> tuple[RunFolder, ...]:
    """Runs of a store that went away with what they ran on, where that is of the cluster's kind.

    Nobody has ended them, or Ray, a node or the network did.
    """
    runs = (RunFolder(store.run_storage(name)) for name in store.runs())
    here = (run for run in runs if run.exists() and not run.moved)
    same = (run for run in here if run.cluster().backend == cluster.backend)
    return tuple(run for run in same if _was_interrupted(run))


def _was_interrupted(run: RunFolder) -> bool:
    supervisors = run.supervisors()
    if not supervisors:
        return False
    if (end := supervisors[-1].end) is None:
        return True
    if end["state"] != "failed":  # somebody cancelled it, or all was done
        return False
    lasts = [a for i in run.plan().leaders for a in run.attempts(i.id)[-1:]]
    ends = [a.end for a in lasts if a.end and a.end["state"] in ("failed", "preempted")]
    return any(Cause(end["cause"]) in INTERRUPTIONS for end in ends)


def require_variables(run: RunFolder, cluster: Cluster) -> None:
    """Raises SpecErrors when a variable that jobs need is not set here, or to no use."""
    if problems := tuple(unfit_variables(run.recipe(), cluster)):
        raise SpecErrors(problems)


def require_within_limits(run: RunFolder, cluster: Cluster) -> None:
    """Raises RequestError when a run has spent what a cluster lets it."""
    if limit := spending(run, run.plan(), is_alive=False).used_up(cluster):
        raise RequestError(
            f"{run.name}: {limit}; raise it, and `orchestrator resume {run.name} --cluster FILE` "
            "goes on"
        )


def move(run: RunFolder, cluster_file: Path) -> bool:
    """Let a run go on where another cluster file says; False when that is where it is.

    Raises RequestError when the run cannot go on there, or is at work.
    """
    cluster = load_cluster(cluster_file)
    if cluster == run.cluster():
        return False
    require_submittable(cluster)
    if (observed := observe(run)).is_alive:
        problem = "; ".join(observed.unknown_jobs()) or "is at work"
        raise RequestError(
            f"{run.name}: {problem}; `orchestrator cancel {run.name}` before it moves"
        )
    require_fit(run, cluster, cluster_file.name)
    run.move(cluster)
    return True


def require_fit(run: RunFolder, cluster: Cluster, where: str) -> None:
    """Raises RequestError when a run cannot go on with a cluster, ``where`` being its file."""
    require_submittable(cluster)
    require_executable(run)
    problems = (
        *impossible_splits(run.variants(), run.plan(), cluster, where),
        *impossible_workers(run.plan(), cluster, where),
        *executor_of(cluster).too_large(run.plan(), cluster, where),
        *unfit_variables(run.recipe(), cluster, cluster_name=where),
        *missing_hook(cluster, where),
    )
    if problems:
        raise SpecErrors(problems)
    require_within_limits(run, cluster)


def _facts(recipes: Sequence[Recipe], cluster: Cluster, where: str, chosen: str) -> Facts:
    """Fingerprints of phone times and suites, and of sources, for which a snapshot label stands.

    Raises SpecErrors for sources that cannot be listed here: their keys would be other ones than
    where they can; BackendError for a bucket that does not answer.
    """
    problems: list[str] = []
    listed = partial(_listed, cluster, where, problems)
    judged = dict.fromkeys(r.evaluate.unit_quality for r in recipes if r.evaluate.unit_quality)
    alignments = {
        score.alignments: listed(score.alignments, fingerprint_alignments)
        for score in judged
        if score.alignments in cluster.data
    }
    asked = (s.data for recipe in recipes for s in recipe.evaluate.asked_suites.values())
    suites = {
        name: listed(name, fingerprint_suite)
        for name in dict.fromkeys(asked)
        if name in cluster.data
    }
    are_labelled = {bool(recipe.corpus.snapshot) for recipe in recipes}
    if are_labelled == {True} and not problems:
        return Facts(alignments=alignments, suites=suites)
    if len(are_labelled) > 1:
        problems.append("sweep: corpus.snapshot: give a label to every variant, or to none")
    problems += unmapped_sources(recipes, cluster, where, chosen)
    problems += unfit_containers(recipes, cluster, where)
    listings: dict[str, str] = {}
    for source in _listed_alike(recipes):
        if source.name in cluster.data:
            digest = listed(source.name, partial(fingerprint, source))
            if listings.setdefault(source.name, digest) != digest:
                problems.append(
                    f"sweep: corpus.sources: {source.name} is listed by several adapters; give the "
                    "source of each a name of its own"
                )
    if problems:
        raise SpecErrors(problems)
    return Facts(listings=listings, alignments=alignments, suites=suites)


def _listed_alike(recipes: Sequence[Recipe]) -> Iterable[Source]:
    """One source for each thing that is listed: what is found below a root is its adapter's."""
    return {(s.name, s.adapter): s for r in recipes for s in r.corpus.sources}.values()


def _listed(
    cluster: Cluster,
    where: str,
    problems: list[str],
    name: str,
    digest: Callable[[Path | BucketPath, Container], str],
) -> str:
    """The digest of what lies under a name of ``data``; a problem more where it cannot be had."""
    root = root_of(cluster, name)
    try:
        if isinstance(root, BucketPath):
            root.require(answer_within_s())
        return digest(root, cluster.data_roots[name].container)
    except RequestError as error:
        problems.append(f"{where}: data.{name}: {error}")
    except ConnectionError as error:
        raise BackendError(f"{where}: data.{name}: {error}") from None
    except OSError as error:
        problems.append(f"{where}: data.{name}: {_unlisted(root, error)}")
    return ""


def _unlisted(root: Path | BucketPath, error: OSError) -> str:
    if isinstance(root, BucketPath) or not error.filename:
        return str(error)
    if isinstance(error, NotADirectoryError) and root.is_file():
        return f"{root} is a file; give the folder that it is in"
    if isinstance(error, FileNotFoundError | NotADirectoryError) and str(root) == error.filename:
        return f"{root} is not a folder here; submit where it is mounted, or give corpus.snapshot"
    return f"{os_words(error)}; make all of it readable here, or name another folder"
