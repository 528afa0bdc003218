"""From YAML files to frozen specs: safe YAML, ``extends``, ``--set``, sweeps, errors with a place.

In: paths and override strings. Out: `Recipe`, `Cluster`, `Variant` mappings; or `SpecErrors` with
one line a problem:
``twist.yaml: tokenizer.num_cluster: unknown key; did you mean 'num_clusters'?``
"""

from __future__ import annotations

import datetime
import difflib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError

from orchestrator.errors import RequestError, SpecErrors
from orchestrator.spec.cluster import Cluster
from orchestrator.spec.model import LARGEST_COUNT, Name, Spec
from orchestrator.spec.recipe import Recipe, moved_to
from orchestrator.spec.sweep import sweep_points

MAX_FILE_BYTES = 1_000_000
_ENV = re.compile(r"\$\{env:([^}]*)\}")
_PLACE = re.compile(r"/|\w+://")
SpecT = TypeVar("SpecT", bound=Spec)


class _SafeLoader(yaml.SafeLoader):
    """YAML without Python tags, aliases (billion laughs), duplicate keys; ``1e-3`` is a number."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases are not allowed; write the value out",
                problem_mark=self.peek_event().start_mark,  # type: ignore[no-untyped-call]
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                written = key_node.value if isinstance(key_node, yaml.ScalarNode) else repr(key)
                raise yaml.MarkedYAMLError(
                    problem=f"key {written} is not text; quote it", problem_mark=key_node.start_mark
                )
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key!r} is given twice; keep one",
                    problem_mark=key_node.start_mark,
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _refuse_tag(_: _SafeLoader, node: yaml.Node) -> None:
    raise yaml.MarkedYAMLError(
        problem=f"tag {node.tag!r} is not allowed; write the value plainly",
        problem_mark=node.start_mark,
    )


# As in YAML 1.2: 010 is no eight and 48:00:00 no number to base 60; 1e-3 is a number, not text.
_NUMBERS = {
    "tag:yaml.org,2002:int": r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$",
    "tag:yaml.org,2002:float": r"[-+]?((0|[1-9][0-9_]*)(\.[0-9_]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?$"
    r"|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$",
}
_SafeLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in _NUMBERS.items():
    _SafeLoader.add_implicit_resolver(_tag, re.compile(_pattern), list("-+.0123456789"))
_SafeLoader.add_constructor(None, _refuse_tag)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a file with its ``extends`` and overrides applied.

    Raises SpecErrors or RequestError.
    """
    raw = _with_overrides(read_yaml(path), overrides)
    return parse_recipe(raw, where=path.name)


def parse_recipe(raw: Mapping[str, Any], *, where: str) -> Recipe:
    """The recipe of plain data, with every variant of its sweep checked. Raises SpecErrors."""
    recipe = _validated(Recipe, raw, where)
    for point in sweep_points(recipe.sweep):
        variant_recipe(recipe, point.overrides, where=where, name=point.name)
    return recipe


def load_cluster(path: Path) -> Cluster:
    """The cluster of a file, relative paths made absolute. Raises SpecErrors or RequestError."""
    return _validated(Cluster, read_yaml(path), path.name, folder=path.resolve().parent)


def parse_cluster(raw: Mapping[str, Any], *, where: str) -> Cluster:
    """The cluster of plain data. Raises SpecErrors."""
    return _validated(Cluster, raw, where)


def resolve_env(value: str, *, where: str, is_place: bool = True) -> str:
    """``value`` with every ``${env:NAME}`` filled in from this process.

    Raises RequestError when one is not set, or when a path that begins with one is relative: each
    process would look for it below another folder.
    """

    def look_up(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in os.environ:
            raise RequestError(
                f"{where}: environment variable {name} is not set; export it and try again"
            )
        return os.environ[name]

    resolved = _ENV.sub(look_up, value)
    if value.startswith("${env:") and is_place and not _PLACE.match(resolved):
        raise RequestError(
            f"{where}: {value} is {resolved!r}, no absolute path or URL; export one that is"
        )
    return resolved


def require_name(value: str, *, where: str) -> None:
    """Raises SpecErrors unless the value follows the rule of all names."""
    try:
        TypeAdapter(Name).validate_python(value)
    except ValidationError as error:
        found = [dict(problem) for problem in error.errors(include_url=False)]
        raise SpecErrors(_lines(Spec, found, where, value)) from None


def variant_recipe(
    recipe: Recipe, overrides: Mapping[str, Any], *, where: str = "sweep", name: str = ""
) -> Recipe:
    """The recipe of the variant of a name, without its sweep. Raises SpecErrors."""
    at = f"{where}: sweep {name}" if name and overrides else where
    raw = recipe.model_dump(mode="json", exclude_unset=True)
    raw.pop("sweep", None)
    for key, value in overrides.items():
        _assign(raw, key, value, f"{where}: sweep.{key}" if key in recipe.sweep else f"{at}: {key}")
    return _validated(Recipe, raw, at)


def read_yaml(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The mapping of a YAML file over what it ``extends``. Raises RequestError."""
    path = path.resolve()
    if path in seen:
        chain = " -> ".join(p.name for p in (*seen, path))
        raise RequestError(f"{path.name}: extends: {chain} is a cycle; remove one of them")
    raw = _parse(path)
    parent = raw.pop("extends", None)
    if parent is None:
        return raw
    if not isinstance(parent, str):
        raise RequestError(f"{path.name}: extends: {parent!r} is not a file name; give one path")
    if not (path.parent / parent).is_file():
        raise RequestError(f"{path.name}: extends: {parent!r} is not a file; check the path")
    return _merged(read_yaml(path.parent / parent, (*seen, path)), raw)


def _parse(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise RequestError(
                f"{path.name}: larger than {MAX_FILE_BYTES} bytes; this is no recipe"
            )
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=_SafeLoader)
    except OSError as error:
        raise RequestError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except UnicodeDecodeError:
        raise RequestError(f"{path.name}: not UTF-8 text; save it as UTF-8") from None
    except _YAML_ERRORS as error:
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
        raise RequestError(f"{path.name}{place}: {_yaml_problem(error)}") from None
    if not isinstance(value, dict):
        found = "empty" if value is None else _shown(value)
        raise RequestError(f"{path.name}: must be a mapping of sections, not {found}")
    return value


# ValueError: 2020-13-41 and !!int many; RecursionError: ten thousand brackets.
_YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError)


def _yaml_problem(error: Exception) -> str:
    """What is wrong with the YAML, in one line."""
    if isinstance(error, yaml.MarkedYAMLError):
        problem = error.problem or "not valid YAML"
        return f"{error.context}, {problem}" if problem.startswith("but ") else problem
    if isinstance(error, RecursionError):
        return "nested too deeply; this is no recipe"
    return f"not valid YAML ({str(error).splitlines()[0]})"


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid onto ``base``, mapping by mapping; lists and leaves are replaced whole."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both and key != "sweep" else value
    return merged


def _with_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    for text in overrides:
        key, separator, value = text.partition("=")
        if not separator or not all(key.strip().split(".")):
            raise RequestError(
                f"--set {text}: not of the form key=value; write --set train.steps=100"
            )
        try:
            parsed = yaml.load(value, Loader=_SafeLoader)
        except _YAML_ERRORS as error:
            raise RequestError(f"--set {text}: {_yaml_problem(error)}") from None
        _assign(raw, key.strip(), parsed, f"--set {key.strip()}")
    return raw


def _assign(raw: dict[str, Any], dotted: str, value: Any, where: str) -> None:
    if now := moved_to(dotted, value):
        raise RequestError(f"{where}: each score has a section of its own; write {now}")
    *parents, leaf = dotted.split(".")
    if parents[:1] == ["sweep"]:
        parents, leaf = ["sweep"], dotted.removeprefix("sweep.")
    here = raw
    for name in parents:
        if here.get(name) is None:
            here[name] = {}
        here = here[name]
        if not isinstance(here, dict):
            raise RequestError(f"{where}: {name!r} is not a section; set it as a whole")
    here[leaf] = value


def _validated(
    model: type[SpecT], raw: Mapping[str, Any], where: str, folder: Path | None = None
) -> SpecT:
    """The model of plain data; locations are relative to ``folder``, where there is one."""
    try:
        return model.model_validate(raw, context=folder)
    except ValidationError as error:
        found = [dict(p) for p in error.errors(include_url=False)]
        # A list whose items are wrong is also called too short; only an empty one is.
        found = [p for p in found if p["type"] != "too_short" or not p["input"]] or found
        raise SpecErrors(_lines(model, found, where, raw)) from None


_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing_size": f"at most {LARGEST_COUNT}",
    "float_type": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "string_pattern_mismatch": "text like {pattern}",
    "string_too_short": "at least {min_length} character long",
    "tuple_type": "a list",
    "dict_type": "a section",
    "model_type": "a section",
    "too_short": "a list of at least {min_length}",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "finite_number": "finite",
    "literal_error": "{expected}",
}
"""Pydantic's type of a problem to what would be right, in the words of a recipe's author."""
_INNER_TAG = re.compile(r"(literal\[|constrained-|function-|\[key\]).*|int|str|float|bool|none")
"""A part of a place that is pydantic's and no key: a union's member, or ``[key]``."""


def _lines(
    model: type[BaseModel], problems: Sequence[Mapping[str, Any]], where: str, raw: Any
) -> tuple[str, ...]:
    """One line a place; what each member of a union would have taken is joined by "or"."""
    by_place: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for problem in problems:
        place = tuple(_keys(problem["loc"], raw))
        by_place.setdefault(place, []).append(problem)
    return tuple(
        ": ".join(filter(None, (where, ".".join(place), _said(model, place, found))))
        for place, found in by_place.items()
    )


def _keys(loc: Sequence[str | int], raw: Any) -> Iterator[str]:
    """The author's parts of pydantic's place: a key that is there may well be called int."""
    here = raw
    for part in loc:
        is_item = isinstance(here, list) and part in range(len(here))
        is_there = is_item or (isinstance(here, Mapping) and part in here)
        if is_there or not _INNER_TAG.fullmatch(str(part)):
            yield str(part)
            here = here[part] if is_there else None


def _said(model: type[BaseModel], place: Sequence[str], found: Sequence[Mapping[str, Any]]) -> str:
    first = found[0]
    if first["type"] == "extra_forbidden":
        return f"unknown key{_did_you_mean(place, model)}"
    if first["type"] == "missing":
        return "missing; give it a value"
    if first["type"] == "too_long":
        return "{actual_length} values; keep {max_length}".format(**first["ctx"])
    if any(problem["type"] not in _EXPECTED for problem in found):
        message = str(first["msg"]).removeprefix("Value error, ")
        return message[0].lower() + message[1:]
    expected = [_EXPECTED[p["type"]].format(**p.get("ctx", {})) for p in found]
    expected = ["true" if text == "True" else text for text in expected]
    is_scalar = isinstance(first["input"], int | float | datetime.date)
    quote = "; quote it" if is_scalar and expected == ["text"] else ""
    return f"must be {' or '.join(dict.fromkeys(expected))}, not {_shown(first['input'])}{quote}"


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "a section"
    if isinstance(value, list | tuple | set):
        return "a list" if value else "an empty list"
    text = repr(value) if isinstance(value, str | int | float) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _did_you_mean(place: Sequence[str], model: type[BaseModel]) -> str:
    section = _model_at(model, place[:-1])
    names = list(section.model_fields) if section else []
    close = difflib.get_close_matches(place[-1], names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known here: {', '.join(names)}" if names else ""


def _model_at(model: type[BaseModel] | None, place: Sequence[str]) -> type[BaseModel] | None:
    for part in place:
        if model is None:
            return None
        if part in model.model_fields:
            model = _inner_model(model.model_fields[part].annotation)
    return model


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation if issubclass(annotation, BaseModel) else None
    return next((m for a in get_args(annotation) if (m := _inner_model(a))), None)
