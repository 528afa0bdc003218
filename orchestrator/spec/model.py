"""The base of every spec model: frozen, strict about keys, documented under each field."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    ValidationInfo,
    model_serializer,
)
from pydantic_core import PydanticKnownError

LARGEST_COUNT = 2**53
"""JSON carries whole numbers exactly up to here."""
_REFERENCE = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")


class Spec(BaseModel):
    """Frozen configuration; the docstring under a field is its description in the JSON Schema."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=()
    )

    @model_serializer(mode="wrap")
    def _with_nulls(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Write down what was set to null, for where its default is something else."""
        values: dict[str, Any] = handler(self)
        nulls = [n for n in sorted(self.model_fields_set) if getattr(self, n) is None]
        return {**values, **dict.fromkeys(nulls)}


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


def _one_line(value: str) -> str:
    if not value:
        raise ValueError("must not be empty")
    if not value.isprintable():
        raise ValueError("must be one line, without control characters")
    return value


def _one_word(value: str) -> str:
    if re.search(r"\s", _one_line(value)):
        raise ValueError(f"must not contain spaces: {value!r}")
    return value


def _place(value: str) -> str:
    if re.search(r"\$(?!\{env:[A-Za-z_][A-Za-z0-9_]*\})", _one_line(value)):
        raise ValueError(f"{value!r}: a shell's variables mean nothing here; write ${{env:NAME}}")
    if re.match(r"\w+:/(?!/)", value):
        raise ValueError(f"{value!r}: is no URL; write two slashes, as in s3://bucket/prefix")
    return value


def _absolute(value: str, info: ValidationInfo) -> str:
    folder: Path | None = info.context
    if folder is None or "://" in value or value.startswith(("${env:", "/")):
        return value
    try:
        return os.path.normpath(folder / Path(value).expanduser())
    except RuntimeError:
        raise ValueError(f"{value}: no such user; check the path") from None


def _absolute_image(value: str, info: ValidationInfo) -> str:
    # Images have names of their own; only what begins like a path is one.
    return _absolute(value, info) if value.startswith(("~", ".")) else value


def _launcher_file(value: str) -> str:
    return value if "/" in value else f"launchers/{value.removesuffix('.yaml')}.yaml"


def _reference(value: str) -> str:
    if not _REFERENCE.fullmatch(value):
        raise ValueError(
            "must not be written down here; write ${env:NAME} and export NAME where you submit"
        )
    return value


def variable_in(reference: str) -> str:
    """The variable that a `Reference` names."""
    return _REFERENCE.sub(r"\1", reference)


Line = Annotated[str, AfterValidator(_one_line)]
"""Text without line breaks or control characters: it stands in one line of a script."""
Word = Annotated[str, AfterValidator(_one_word)]
"""The same without spaces."""
Location = Annotated[str, AfterValidator(_place), AfterValidator(_absolute)]
"""A path or URL; ``${env:NAME}`` in it is filled in where it is used; one that begins with it
must become an absolute path or a URL. Relative ones are made absolute with the folder that the
validation has as its context."""
Image = Annotated[str, AfterValidator(_place), AfterValidator(_absolute_image)]
"""A container image: a `Location`, or a name of its own."""
Argument = Annotated[str, AfterValidator(_one_line), AfterValidator(_absolute_image)]
"""A word of a command; one that begins with ``.`` or ``~`` is a path, relative to the file."""
LauncherFile = Annotated[
    str, AfterValidator(_one_word), AfterValidator(_launcher_file), AfterValidator(_absolute)
]
"""``NAME`` for ``launchers/NAME.yaml``, or a path; relative to the cluster file."""
Reference = Annotated[str, AfterValidator(_reference)]
"""``${env:NAME}``: what may be a secret is looked up where it is used, and written down nowhere."""
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Language = Annotated[str, StringConstraints(pattern=r"^[a-z]{2,3}$")]


def _no_slip(error: Literal["int_type", "float_type"]) -> BeforeValidator:
    """Pydantic reads true as 1 and '12' as 12; in a recipe both are slips."""

    def check(value: Any) -> Any:
        if isinstance(value, bool | str):
            raise PydanticKnownError(error)
        return value

    return BeforeValidator(check)


Int = Annotated[int, _no_slip("int_type"), Field(le=LARGEST_COUNT)]
Float = Annotated[float, _no_slip("float_type"), Field(allow_inf_nan=False)]
PositiveInt = Annotated[Int, Field(gt=0)]
Count = Annotated[Int, Field(ge=0)]
PositiveFloat = Annotated[Float, Field(gt=0)]
NonNegativeFloat = Annotated[Float, Field(ge=0)]
Fraction = Annotated[Float, Field(ge=0, lt=1)]
