"""The Suite: a YAML file of axes times one recipe, checked as a whole and turned into cells.

Every problem of a file is reported at once, each with its line, its field and the mend. The models that check the file
are made from Cell's own fields, so that a new field of Cell is at once a recipe field, an axis and a schema entry.
"""

import itertools
import math
import re
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, Field, ValidationError, ValidationInfo, create_model

from bench.cell import Cell, CustomTask, Frozen
from bench.errors import InputError, nearest
from bench.yaml_file import Place, Problem, read, refuse, without

SHIPPED = Path(__file__).parent / "suites"
MAX_CELLS = 100_000


def _words(annotation: object) -> list[str]:
    """The named values that an annotation allows."""
    if get_origin(annotation) is Literal:
        return [str(word) for word in get_args(annotation)]
    inner = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()
    return [word for part in inner for word in _words(part)]


SWITCHES = {name for name, info in Cell.model_fields.items() if "off" in _words(info.annotation)}
"""Cell fields with the word off, which YAML 1.1 reads as a boolean, as it does on."""


def _as_written(value: object, info: ValidationInfo) -> object:
    """Undo YAML's reading of on/off, and refuse what pydantic would quietly take for a number."""
    field = info.field_name or ""
    if isinstance(value, bool) and field in SWITCHES:
        return "on" if value else "off"
    if isinstance(value, bool) and (field not in Cell.model_fields or Cell.model_fields[field].annotation is not bool):
        raise ValueError(f"{value} is a switch (on, yes, true, ...), not a value of this field; quote it if it is text")
    known = _registered(field)
    if isinstance(value, str) and known and value not in known:
        raise ValueError(f"no such {field}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    return value


def _registered(field: str) -> list[str]:
    """Names that a registry knows for a field; empty for the other fields."""
    if field == "backend":
        from bench.backends import names

        return names()
    if field == "task":
        from bench.tasks import names

        return names()
    return []


def _section(name: str, shape: Literal["one", "list", "rule"]) -> type[BaseModel]:
    """A model with every field of Cell, none required: one value, a list of values, or either (a rule)."""
    fields = {}
    for key, info in Cell.model_fields.items():
        one = Annotated[info.annotation, *info.metadata, BeforeValidator(_as_written)]  # type: ignore[name-defined]
        many = Annotated[list[one], Field(min_length=1)]
        about = Field(None, description=info.description, json_schema_extra=lambda schema: schema.pop("default", None))
        fields[key] = ({"one": one, "list": many, "rule": one | many}[shape], about)
    return create_model(name, __base__=Frozen, **fields)  # type: ignore[call-overload, no-any-return]


Recipe, Axes, Rule = _section("Recipe", "one"), _section("Axes", "list"), _section("Rule", "rule")
Text = Annotated[str, BeforeValidator(_as_written)]


class SuiteFile(Frozen):
    """A peftmark suite: every combination of the axes' values over one recipe."""

    name: Annotated[Text, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the suite: letters, digits, dot, dash and underscore."""
    description: Text = ""
    """What the suite is for."""
    repeats: Annotated[int, Field(ge=1), BeforeValidator(_as_written)] = 1
    """Fresh processes per cell."""
    timeout_s: Annotated[float, Field(gt=0), BeforeValidator(_as_written)] = 1800
    """Longest wall-clock time of one run of one cell, seconds."""
    recipe: Recipe = Recipe()  # type: ignore[valid-type]
    """Fields that all cells share."""
    axes: Axes = Axes()  # type: ignore[valid-type]
    """Fields that vary: each with the list of its values; cells are their product, in this order."""
    exclude: list[Rule] = []  # type: ignore[valid-type]
    """Rules, field to value or list of values: a combination that matches every field of a rule is dropped."""
    include: list[Recipe] = []  # type: ignore[valid-type]
    """Extra cells: fields over the recipe. Without axes, these are the only cells."""


@dataclass(frozen=True)
class Suite:
    """A checked suite file."""

    path: Path
    name: str
    description: str
    repeats: int
    timeout_s: float
    axes: tuple[str, ...]
    """Names of the fields that vary."""
    warnings: tuple[str, ...]
    """What is allowed and probably not meant."""
    distinct_cells: tuple[Cell, ...]

    @property
    def base(self) -> Path:
        """Folder that relative paths of a custom task start from."""
        return self.path.resolve().parent

    def cells(self) -> list[Cell]:
        """The cells in the order of the axes, then the included ones; no two have the same digest."""
        return list(self.distinct_cells)


def json_schema() -> dict[str, object]:
    """The JSON Schema of a suite file, for editors."""
    schema = SuiteFile.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "peftmark suite"}


def shipped() -> list[str]:
    """Names of the suites that come with peftmark."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def find(name_or_path: str | Path) -> Path:
    """The suite file of that path, or the shipped suite of that name."""
    path, text = Path(name_or_path), str(name_or_path)
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml") or "/" in text:
        raise InputError(text, "no such suite file", f"give a YAML file, or a shipped suite: {', '.join(shipped())}")
    if text not in shipped():
        raise InputError(text, "no such suite file, nor a shipped suite of that name", nearest(text, shipped()))
    return SHIPPED / f"{text}.yaml"


def load(path: Path) -> Suite:
    """Read and check a suite file; an InputError names every problem in it."""
    raw, lines, problems = read(path)
    checked, faults = _check(raw)
    problems += faults
    written = raw.get("axes") if isinstance(raw, dict) else None
    order = [key for key in written if key in Cell.model_fields] if isinstance(written, dict) else []
    cells: list[Cell] = []
    warnings: list[str] = []
    sound = checked if checked or _spoilt(faults) else _check(without(raw, [problem.path for problem in faults]))[0]
    if sound:
        doubtful = {part for problem in faults for part in (*problem.path, *re.findall(r"\w+", problem.mend))}
        cells, warnings, conflicts = _cells(sound, order)
        doubtful &= set(Cell.model_fields)
        problems += [c for c in conflicts if not doubtful & set(re.findall(r"\w+", c.what))]
    if problems or checked is None:
        refuse(path, lines, problems)
    return Suite(
        path=path,
        name=checked.name,
        description=checked.description,
        repeats=checked.repeats,
        timeout_s=checked.timeout_s,
        axes=tuple(order),
        warnings=tuple(warnings),
        distinct_cells=tuple(cells),
    )


def _spoilt(faults: list[Problem]) -> bool:
    """Whether a whole section or a rule is unreadable, so that complaints about combinations would mislead."""
    sections = {"recipe", "axes", "exclude", "include"}
    words = {word for p in faults if len(p.path) == 1 for word in (*p.path, *re.findall(r"\w+", p.mend))}
    return bool(sections & words) or any(p.path[:1] == ("exclude",) for p in faults)


# Checking: plain values to the models above, with every fault


def _check(raw: object) -> tuple[SuiteFile | None, list[Problem]]:
    if not isinstance(raw, dict):
        return None, [Problem((), "is not a mapping of keys to values", "see 'peftmark schema'")]
    try:
        return SuiteFile.model_validate(raw), []
    except ValidationError as error:
        faults: dict[Place, list] = {}  # type: ignore[type-arg]
        for fault in error.errors(include_url=False):
            faults.setdefault(_path_in(raw, fault["loc"], fault["type"]), []).append(fault)
    deepest = [p for p in faults if not any(p == other[: len(p)] and p != other for other in faults)]
    return None, [_problem(path, faults[path]) for path in deepest]


def _path_in(raw: object, loc: tuple[int | str, ...], kind: str) -> Place:
    """Pydantic's location without the names of union members, which are not in the file."""
    path: Place = ()
    for part in loc:
        inside = part in raw if isinstance(raw, dict) else isinstance(raw, list) and part in range(len(raw))
        if inside:
            raw, path = raw[part], (*path, str(part))  # type: ignore[index]
    return (*path, str(loc[-1])) if kind == "missing" else path


def _problem(path: Place, faults: list) -> Problem:  # type: ignore[type-arg]
    kind, value = faults[0]["type"], faults[0]["input"]
    field = next((part for part in reversed(path) if part in Cell.model_fields), "")
    model: type[BaseModel] = SuiteFile if len(path) < 2 else CustomTask if "custom_task" in path[:-1] else Cell
    if kind == "extra_forbidden":
        return Problem(path, f"unknown key {path[-1]!r}", nearest(path[-1], list(model.model_fields)))
    if kind == "missing":
        return Problem(path, "is missing", "add it")
    if kind == "too_short":
        return Problem(path, "the list of values is empty", "give at least one value, or remove the key")
    if kind == "list_type" and path[0] == "axes":
        return Problem(path, f"an axis is a list of values, not {value!r}", f"write [{value}]")
    words = _registered(field) or _words(Cell.model_fields[field].annotation) if field and model is Cell else []
    if isinstance(value, str) and words:
        return Problem(path, f"{value!r} is not a value of {field}", nearest(value, words))
    said = dict.fromkeys(fault["msg"].removeprefix("Value error, ").removeprefix("Input ") for fault in faults)
    shown = "" if kind == "value_error" else f" (got {value!r})"
    return Problem(path, " or ".join(said) + shown, f"one of: {', '.join(words)}" if words else "")


# Making cells


def _given(section: BaseModel) -> dict[str, object]:
    """Fields that the file sets, in Cell's types."""
    return {key: getattr(section, key) for key in section.model_fields_set}


def _cells(checked: SuiteFile, order: list[str]) -> tuple[list[Cell], list[str], list[Problem]]:
    """Cells, warnings, and the combinations that Cell refuses and no rule excludes."""
    recipe, axes = _given(checked.recipe), _given(checked.axes)
    varied: list[tuple[str, list[object]]] = [(name, axes[name]) for name in order if name in axes]  # type: ignore[misc]
    count: int = math.prod([len(values) for _, values in varied])
    if count > MAX_CELLS:
        return [], [], [Problem(("axes",), f"{count:,} combinations; at most {MAX_CELLS:,} are planned", "split it")]
    rules = [{k: v if isinstance(v, list) else [v] for k, v in _given(rule).items()} for rule in checked.exclude]
    wanted: list[tuple[Place, dict[str, object]]] = []
    if varied or not checked.include:
        combinations = itertools.product(*[values for _, values in varied])
        wanted = [(("axes",), dict(zip([name for name, _ in varied], values, strict=True))) for values in combinations]
    wanted += [(("include", str(i)), _given(extra)) for i, extra in enumerate(checked.include)]

    cells: dict[Cell, None] = {}
    used: set[int] = set()
    refused: dict[tuple[Place, str], list[dict[str, object]]] = {}
    for path, fields in wanted:
        content, why = {**recipe, **fields}, ""
        try:
            cell = Cell(**content)  # type: ignore[arg-type]
            content = cell.__dict__
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            missing = "model: is missing; name it under recipe, axes or include"
            why = missing if fault["type"] == "missing" else fault["msg"].removeprefix("Value error, ")
        hits = [i for i, rule in enumerate(rules) if all(content.get(k) in values for k, values in rule.items())]
        used.update(hits)
        if path == ("axes",) and hits:
            continue
        if why:
            refused.setdefault((path, why), []).append(fields)
        else:
            cells[cell] = None
    warnings = [f"exclude[{i}] matches no combination" for i in range(len(rules)) if i not in used]
    problems = [_conflict(path, why, found, recipe, dict(varied)) for (path, why), found in refused.items()]
    empty = [Problem(("exclude", str(i)), "the rule names no field", "remove it") for i, r in enumerate(rules) if not r]
    if not cells and not problems and not empty:
        problems = [Problem(("exclude",), "the rules drop every combination", "remove one of them")]
    return list(cells), warnings, problems + empty


def _conflict(
    path: Place, why: str, found: list[dict[str, object]], recipe: dict[str, object], axes: dict[str, list[object]]
) -> Problem:
    """Combinations that Cell refuses, at the line of the first field that the refusal names.

    The axes that matter are those of which the refused combinations have some values and not others.
    """
    if path != ("axes",):
        return Problem(path, why, "change one of the fields it names")
    seen = {k: [v for v in values if any(v == one[k] for one in found)] for k, values in axes.items()}
    shown = ", ".join(
        f"{k}: {v[0] if len(v) == 1 else '[' + ', '.join(map(str, v)) + ']'}" for k, v in seen.items() if v != axes[k]
    )
    named = re.findall(r"\w+", why)
    places = [("axes", k) for k in named if k in axes] + [("recipe", k) for k in named if k in recipe]
    if shown:
        places += [("axes", k) for k in axes if seen[k] != axes[k]]
        why += f" ({len(found)} of {math.prod(map(len, axes.values()))} combinations: {shown})"
    mend = f"change it, or add to exclude: {{{shown}}}" if shown else "change one of the fields it names"
    return Problem(next(iter(places), ("recipe",)), why, mend)
