"""pydantic's errors in words that name the field, its value and the nearest field that there is.

class Options(Checked):
    max_batch: int = Field(8, ge=1)

Options(max_bacth=4)       # RequestError: unknown field 'max_bacth'; did you mean 'max_batch'?
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from .errors import RequestError, RoadkitError, nearest

Kind = Literal["unknown", "missing", "json", "invalid"]
# pydantic's word → ours
_KINDS: dict[str, Kind] = {"extra_forbidden": "unknown", "missing": "missing", "json_invalid": "json"}
# What pydantic puts into a location beside field names and indices: the branch of a union that was tried.
_BRANCH = re.compile(r"str|int|float|bool|(list|tuple|dict|literal|nullable|function|constrained)\W?.*")


class Checked(BaseModel):
    """A frozen model that refuses fields it does not know. One `error_class` says everything that is wrong with values."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    error_class: ClassVar[type[RoadkitError]] = RequestError
    noun: ClassVar[str] = "field"  # what the user calls one

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            found = map(str, problems(error, type(self), noun=self.noun))
            raise self.error_class("; ".join(dict.fromkeys(found))) from None


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with given values. `str(problem)` says it whole.

    kind    'unknown': the model has no such field; 'missing'; 'json': the text is not JSON; 'invalid': all else
    field   the dotted path of the field; '' is the object as a whole
    detail  what is wrong with it, without its name
    hint    "; did you mean 'adapter'?" if an unknown field resembles a known one, else ''
    value   what was given
    noun    what the user calls a field
    """

    kind: Kind
    field: str
    detail: str
    hint: str
    value: Any
    noun: str

    def __str__(self) -> str:
        if self.kind == "unknown":
            return f"unknown {self.noun} {self.field!r}{self.hint}"
        if self.kind == "missing":
            return f"{self.field} is missing"
        if self.kind == "json":
            return f"not JSON: {self.detail}"
        about = f"{self.field}: " if self.field else ""
        return f"{about}{self.detail[:1].lower()}{self.detail[1:]}, got {str(self.value)[:80]!r}"


def problems(error: ValidationError, model: type[BaseModel], *, noun: str = "field") -> list[Problem]:
    """Everything that pydantic found wrong with values for `model`. `noun` is what the user calls its fields."""
    return [_problem(found, (model,), noun) for found in error.errors()]


def body_problem(found: Mapping[str, Any], model: type[BaseModel] | None) -> Problem:
    """One entry of FastAPI's `RequestValidationError.errors()`, whose location begins with 'body' or 'query'."""
    return _problem({**found, "loc": found["loc"][1:]}, () if model is None else (model,), "field")


def _problem(found: Mapping[str, Any], models: tuple[type[BaseModel], ...], noun: str) -> Problem:
    *parents, last = found["loc"] or ("",)
    path: list[str] = []
    for part in parents:
        inner = _models_of(str(part), models)
        if inner is None and not isinstance(part, int) and _is_branch(part, models):
            continue
        models = inner or models
        path.append(str(part))
    kind = _KINDS.get(found["type"], "invalid")
    known = [field.alias or name for model in models for name, field in model.model_fields.items()]
    if kind != "invalid" or isinstance(last, int) or last in known or not _is_branch(last, models):
        path.append(str(last))
    detail = found["msg"].removeprefix("Value error, ")
    if kind == "json":
        detail = str((found.get("ctx") or {}).get("error", detail))
    hint = nearest(str(last)[:100], known) if kind == "unknown" else ""
    return Problem(kind, ".".join(filter(None, path)), detail, hint, found.get("input"), noun)


def _models_of(part: str, models: tuple[type[BaseModel], ...]) -> tuple[type[BaseModel], ...] | None:
    """The models that a field of this name may hold; None if no model has it."""
    fields = [field for model in models for name, field in model.model_fields.items() if part in (name, field.alias)]
    return tuple(_models_in([field.annotation for field in fields])) if fields else None


def _models_in(annotations: list[Any]) -> list[type[BaseModel]]:
    found = [kind for kind in annotations if isinstance(kind, type) and issubclass(kind, BaseModel)]
    for annotation in annotations:
        found += _models_in(list(get_args(annotation)))
    return found


def _is_branch(part: Any, models: tuple[type[BaseModel], ...]) -> bool:
    return _BRANCH.fullmatch(str(part)) is not None or str(part) in {model.__name__ for model in models}
