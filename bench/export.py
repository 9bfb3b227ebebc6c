"""``peftmark export``: one tidy row a record, as CSV or Parquet, for pandas, polars, DuckDB and spreadsheets.

``columns()`` is the one place that says what a column means; the table in docs/export.md is made from it. Unknown is
null, never 0. In CSV a text is always quoted and a null is nothing between two commas. A text that a spreadsheet would
take for a formula gets an apostrophe in front (see ``safe``); Parquet has every text as it is.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from bench.cell import Cell
from bench.derived import METERS, Derived, derive
from bench.environment import Gpu
from bench.errors import InputError
from bench.record import EvalResult, Record
from bench.store import RECORD, Loaded, disk_errors

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["text", "integer", "number", "boolean"]
Value = str | int | float | bool | None
FORMULA_STARTS = "=+-@\t\r\n＝＋－＠'"
"""OWASP's list for CSV injection, full-width forms included, and the apostrophe itself, so that it can be undone."""
ROWS_AT_ONCE = 2000
SUFFIXES = (".csv", ".parquet")
PACKAGES = (
    "torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "unsloth", "unsloth_zoo", "triton",
    "liger-kernel",
)  # fmt: skip
CELL_UNITS = {
    "train_examples": "examples", "eval_examples": "items", "eval_max_new_tokens": "tokens", "eval_batch_size": "items",
    "max_length": "tokens", "batch_size": "sequences", "gradient_accumulation_steps": "forward passes",
    "max_steps": "steps", "untimed_steps": "steps", "warmup_steps": "steps", "vram_budget_bytes": "bytes",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What the columns read from."""

    loaded: Loaded
    derived: Derived

    @property
    def record(self) -> Record:
        return self.loaded.record

    @property
    def gpu(self) -> Gpu | None:
        """The GPU that the run used."""
        return next((g for g in self.record.environment.gpus if g.index == self.record.device_index), None)


@dataclass(frozen=True)
class Column:
    """One column: ``unit`` is empty where there is none."""

    name: str
    kind: Kind
    unit: str
    meaning: str
    read: Callable[[Row], Value]


@cache
def columns() -> tuple[Column, ...]:
    """Every column, in the order of the file."""
    return (
        Column("record_id", "text", "", "Unique; sorts by start time.", lambda r: r.record.id),
        Column("path", "text", "", "The record's file, from the folder that was given.", _path),
        Column("suite", "text", "", "Suite that ran it.", lambda r: r.record.suite),
        Column("cell_digest", "text", "", "Equal for repeats of one cell.", lambda r: r.record.cell.digest),
        Column("repeat", "integer", "", "Which of the suite's repeats, from 0.", lambda r: r.record.repeat),
        Column("started_at", "text", "", "UTC, ISO 8601.", lambda r: r.record.started_at),
        Column("status", "text", "", "ok, oom, timeout, crashed, diverged, unsupported or contaminated.",
               lambda r: r.record.status),
        Column("failed_phase", "text", "", "Phase in which a run that is not ok ended.",
               lambda r: r.record.failed_phase),
        Column("message", "text", "", "Why a run is not ok.", lambda r: r.record.message),
        Column("contaminated_by", "text", "", "What disturbed the GPU during the run; empty text: nothing was seen.",
               lambda r: "; ".join(r.record.health.reasons) if r.record.health else None),
        Column("audit_mismatches", "integer", "", "Settings that were not as asked for.", _mismatches),
        *_cell_columns(),
        Column("lora_alpha_value", "integer", "", "LoRA alpha as a number.",
               lambda r: None if r.record.cell.r is None else r.record.cell.alpha),
        *_environment_columns(),
        Column("parameters_total", "integer", "parameters", "Of the loaded model.",
               lambda r: r.record.model.parameters_total if r.record.model else None),
        Column("parameters_trainable", "integer", "parameters", "Of the loaded model.",
               lambda r: r.record.model.parameters_trainable if r.record.model else None),
        Column("wall_s", "number", "s", "Process start to end.", lambda r: r.record.wall_s),
        Column("startup_s", "number", "s", "Import, load, adapter and warm-up.", lambda r: r.derived.startup_s),
        Column("timed_steps", "integer", "steps", "Steps after warm-up: what the rates and step times are over.",
               lambda r: r.derived.timed_steps),
        Column("settled", "boolean", "", "False: the step times never settled; null: too few steps to tell.",
               lambda r: r.derived.settled),
        Column("tokens_per_s", "number", "tokens/s", "Real tokens (no padding) over seconds of the timed steps.",
               lambda r: r.derived.tokens_per_s),
        Column("padded_tokens_per_s", "number", "tokens/s", "The same with every position computed.",
               lambda r: r.derived.padded_tokens_per_s),
        Column("samples_per_s", "number", "rows/s", "Rows over seconds of the timed steps.",
               lambda r: r.derived.samples_per_s),
        Column("step_s", "number", "s", "Median timed step.", lambda r: r.derived.step_s_median),
        Column("step_s_p10", "number", "s", "10th percentile of the timed steps.", lambda r: r.derived.step_s_p10),
        Column("step_s_p90", "number", "s", "90th percentile of the timed steps.", lambda r: r.derived.step_s_p90),
        *_peak_columns(),
        Column("loss_first", "number", "", "Training loss of the first step.", lambda r: _end(r, 0)),
        Column("loss_last", "number", "", "Training loss of the last step.", lambda r: _end(r, -1)),
        *_accuracy_columns("before"),
        *_accuracy_columns("after"),
    )  # fmt: skip


def _path(row: Row) -> str:
    return (row.loaded.folder / RECORD).as_posix()


def _mismatches(row: Row) -> int | None:
    return sum(not entry.ok for entry in row.record.audit) if row.record.audit else None


def _end(row: Row, place: int) -> float | None:
    return row.record.steps.loss[place] if row.record.steps.loss else None


def _cell_columns() -> Iterator[Column]:
    """Every field of the cell under its own name: what a suite says, before any rule is applied."""
    for name, field in Cell.model_fields.items():
        meaning = " ".join((field.description or "").split())
        yield Column(name, _kind(field.annotation), CELL_UNITS.get(name, ""), meaning, _cell_reader(name))


def _cell_reader(name: str) -> Callable[[Row], Value]:
    def read(row: Row) -> Value:
        value = getattr(row.record.cell, name)
        if isinstance(value, BaseModel):
            return value.model_dump_json()
        if isinstance(value, tuple):
            return ",".join(value)
        return str(value) if value is not None and kind == "text" else value

    kind = _kind(Cell.model_fields[name].annotation)
    return read


def _kind(annotation: Any) -> Kind:
    """Column kind of a cell field; what mixes types is text."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    plain = {part for part in parts if part is not type(None)}
    kinds: dict[Any, Kind] = {bool: "boolean", int: "integer", float: "number"}
    return kinds.get(plain.pop(), "text") if len(plain) == 1 else "text"


def _environment_columns() -> Iterator[Column]:
    yield Column("gpu", "text", "", "Name of the GPU that was used.", lambda r: r.gpu.name if r.gpu else None)
    yield Column("gpu_vram_bytes", "integer", "bytes", "Its memory.", lambda r: r.gpu.vram_bytes if r.gpu else None)
    yield Column("driver", "text", "", "NVIDIA driver.", lambda r: r.record.environment.driver)
    yield Column("cpu", "text", "", "Processor.", lambda r: r.record.environment.cpu)
    yield Column("python", "text", "", "Python version.", lambda r: r.record.environment.python)
    for package in PACKAGES:
        yield Column(f"version_{package.replace('-', '_')}", "text", "", f"Version of {package}.", _version(package))
    yield Column(
        "environment", "text", "", "Equal where records may be compared.", lambda r: r.record.environment.fingerprint
    )
    yield Column("git_revision", "text", "", "Revision of peftmark.", lambda r: r.record.environment.git_revision)
    yield Column("git_dirty", "boolean", "", "It had been changed.", lambda r: r.record.environment.git_dirty)


def _version(package: str) -> Callable[[Row], str | None]:
    def read(row: Row) -> str | None:
        found = row.record.environment.packages.get(package)
        return found.version if found else None

    return read


def _peak_columns() -> Iterator[Column]:
    for meter in METERS:
        meaning = f"Highest of the warm-up and steady phases, {meter.replace('_', ' ')} meter."
        yield Column(f"training_peak_{meter}_bytes", "integer", "bytes", meaning,
                     lambda r, meter=meter: r.derived.training_peaks[meter])  # type: ignore[misc]  # fmt: skip


def _accuracy_columns(when: Literal["before", "after"]) -> Iterator[Column]:
    def result(row: Row) -> EvalResult | None:
        return row.record.eval_before if when == "before" else row.record.eval_after

    def of(name: str) -> Callable[[Row], Value]:
        return lambda row: getattr(result(row), name, None)

    yield Column(f"accuracy_{when}", "number", "share", f"Score {when} the fine-tune, 0 to 1.", of("value"))
    yield Column(f"accuracy_{when}_stderr", "number", "share", "Its standard error over the items.", of("stderr"))
    yield Column(f"accuracy_{when}_items", "integer", "items", "Items scored.", of("items"))
    yield Column(f"accuracy_{when}_metric", "text", "", "lm-eval's name of the metric.", of("metric"))


def markdown() -> str:
    """The columns as a Markdown table."""
    rows = [f"| `{c.name}` | {c.kind} | {c.unit} | {c.meaning.replace('|', chr(92) + '|')} |" for c in columns()]
    return "\n".join(["| column | kind | unit | meaning |", "|---|---|---|---|", *rows]) + "\n"


def row_of(loaded: Loaded) -> list[Value]:
    """The record's values, one a column."""
    row = Row(loaded, derive(loaded.record, config_of=lambda record: None))
    return [column.read(row) for column in columns()]


def safe(text: str | None) -> str | None:
    """Text that no spreadsheet takes for a formula: an apostrophe before a first character that could begin one.

    A text that begins with an apostrophe gets one more, so that taking away one leading apostrophe gives the original.
    """
    return f"'{text}" if text and text[0] in FORMULA_STARTS else text


def schema() -> "pa.Schema":
    """Arrow's schema: meaning and unit are in each field's metadata, and stay in a Parquet file."""
    import pyarrow as pa

    types = {"text": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}
    return pa.schema(
        [pa.field(c.name, types[c.kind], metadata={"unit": c.unit, "meaning": c.meaning}) for c in columns()]
    )


def write(records: Iterable[Loaded], file: Path) -> int:
    """Write the rows, some thousand at a time: memory does not grow with their number. Returns how many.

    A file of that name is replaced when the new one is whole. InputError for a suffix that is none of SUFFIXES.
    """
    import pyarrow as pa
    from pyarrow import csv, parquet

    if file.suffix not in SUFFIXES:
        raise InputError(f"--out {file}", "is neither CSV nor Parquet", f"end it in {' or '.join(SUFFIXES)}")
    form, rows, count = schema(), map(row_of, records), 0
    draft = file.with_name(f".{file.name}.draft")
    with disk_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            writer = csv.CSVWriter(draft, form) if file.suffix == ".csv" else parquet.ParquetWriter(draft, form)
            with writer:
                while some := list(islice(rows, ROWS_AT_ONCE)):
                    values = [list(column) for column in zip(*some, strict=True)]
                    if file.suffix == ".csv":
                        values = [_safe_column(c, v) for c, v in zip(columns(), values, strict=True)]
                    arrays = [pa.array(v, field.type) for v, field in zip(values, form, strict=True)]
                    writer.write_table(pa.Table.from_arrays(arrays, schema=form))
                    count += len(some)
            draft.replace(file)
        finally:
            draft.unlink(missing_ok=True)
    return count


def _safe_column(column: Column, values: list[Any]) -> list[Any]:
    return [safe(value) for value in values] if column.kind == "text" else values
