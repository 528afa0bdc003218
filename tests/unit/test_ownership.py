"""Each fact has one owner: nobody else asks for a backend or a stage, or spells a checkpoint."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.plan.stages import STAGES
from tests.unit.source import JOBS, MODULES, name_of, tree_of

SOURCE = (*MODULES, *JOBS)
BACKENDS = {"local", "slurm", "ray", "fake"}
STAGE_NAMES = {stage.name for stage in STAGES}
SPEC, PLAN = "orchestrator/spec/", "orchestrator/plan/"
REGISTRY = "orchestrator/control/executor.py"
CHECKPOINTS = "orchestrator/ledger/checkpoints.py"

ASK_FOR_A_STAGE: set[str] = {
    "orchestrator/ledger/verify.py: instance.stage == 'train'",
}
"""Still to go, but for two."""


def comparisons(tree: ast.Module) -> Iterator[ast.expr]:
    """Everything that is compared, looked for or matched."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            yield node
        elif isinstance(node, ast.match_case):
            for part in ast.walk(node.pattern):
                if isinstance(part, ast.MatchValue):
                    yield part.value


def words_in(node: ast.expr, constants: dict[str, str]) -> set[str]:
    """Strings that an expression names, by a constant of its module as well."""
    parts = list(ast.walk(node))
    literal = {p.value for p in parts if isinstance(p, ast.Constant) and isinstance(p.value, str)}
    return literal | {constants.get(p.id, "") for p in parts if isinstance(p, ast.Name)}


def constants_of(tree: ast.Module) -> dict[str, str]:
    """Names that a module gives to strings."""
    return {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(node.value.value, str)
    }


def asked(tree: ast.Module, names: set[str], about: str) -> Iterator[str]:
    """Comparisons with one of some names in which that word or attribute stands as well."""
    constants = constants_of(tree)
    for node in comparisons(tree):
        text = ast.unparse(node)
        if words_in(node, constants) & names and (about in text or isinstance(node, ast.Constant)):
            yield text


def asked_in(path: Path, names: set[str], about: str) -> set[str]:
    return {f"{name_of(path)}: {text}" for text in asked(tree_of(path), names, about)}


def test_nobody_asks_for_a_backend_by_name() -> None:
    paths = [p for p in SOURCE if not name_of(p).startswith((SPEC, REGISTRY))]
    found = set[str]().union(*(asked_in(path, BACKENDS, "backend") for path in paths))
    assert found == set()


def test_hardly_anybody_asks_for_a_stage_by_name() -> None:
    paths = [p for p in SOURCE if not name_of(p).startswith((SPEC, PLAN))]
    found = set[str]().union(*(asked_in(path, STAGE_NAMES, "stage") for path in paths))
    assert found <= ASK_FOR_A_STAGE


def docstrings(tree: ast.Module) -> set[int]:
    """The strings that stand alone."""
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def spells_a_checkpoint(tree: ast.Module) -> bool:
    """Whether its folder's or its own name is written out."""
    prose = docstrings(tree)
    texts = (
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
    )
    return any(re.search(r"checkpoints/|\bstep-|^checkpoints$", text) for text in texts)


def test_a_checkpoints_name_is_spelled_in_one_file() -> None:
    found = {name_of(path) for path in SOURCE if spells_a_checkpoint(tree_of(path))}
    assert found == {CHECKPOINTS}


@pytest.mark.parametrize(
    "code",
    [
        "cluster.backend == 'slurm'",
        "'ray' != request.cluster.backend",
        "cluster.backend in ('local', 'fake')",
        "cluster.backend == NAME",
        "match backend:\n    case 'slurm' | 'ray':\n        pass",
    ],
)
def test_a_backend_that_is_asked_for_is_noticed(code: str) -> None:
    assert list(asked(ast.parse(f"NAME = 'slurm'\n{code}"), BACKENDS, "backend"))


def test_what_asks_for_nothing_is_let_be() -> None:
    code = "cluster.backend == other.backend\nEXECUTORS[cluster.backend]\nstage.has_ranks == True"
    assert not list(asked(ast.parse(code), BACKENDS | STAGE_NAMES, ""))
    assert not spells_a_checkpoint(ast.parse('"""checkpoints/step-1"""\nlog("all checkpoints")'))
    assert spells_a_checkpoint(ast.parse("f'step-{n}'"))
