"""The ladder: cells of a suite in its order, each laid beside the one before: what changed, and what that was worth.

A ladder is the cells that are equal in all but ``RUNG_FIELDS``; a suite may hold several (one a precision). What a rung
changes is read from the cells. Ratios are of medians over the runs that ended ok, and only where both rungs have one;
a rung that ran out of memory stays, with the peaks that it reached.
"""

from collections.abc import Sequence

from bench import suite
from bench.cell import Cell, Frozen
from bench.derived import METERS, Derived, Meter, derive, middle, values
from bench.errors import InputError
from bench.groups import differing
from bench.record import Record, Status

RUNG_FIELDS = ("backend", "attention", "gradient_checkpointing", "optimizer", "packing", "padding_free")
"""Cell fields that tell rungs of one ladder apart."""


class Change(Frozen):
    """A field in which a rung differs from the one before."""

    field: str
    before: str
    after: str


class Ratios(Frozen):
    """A rung over another one: above 1 is faster, or more memory. Null where either has no number."""

    tokens_per_s: float | None
    training_peaks: dict[Meter, float | None]


class Rung(Frozen):
    """One cell of the ladder."""

    name: str
    """The values that are new in it; for the first, of every field that varies."""
    cell: Cell
    changes: list[Change]
    status: Status | None
    """ok when any run ended ok, else that of the latest run; null when there is none."""
    message: str | None
    """Of the latest run, where none ended ok."""
    record_ids: list[str]
    processes: int
    """Runs that ended ok; the numbers are their medians."""
    tokens_per_s: float | None
    """Real tokens."""
    training_peaks: dict[Meter, float | None]
    """Bytes; without an ok run the highest that a failed one reached: a lower bound."""
    over_previous: Ratios | None
    over_first: Ratios | None
    """Over the first rung with an ok run; null in that rung and before it."""


class Ladder(Frozen):
    """Rungs in order, all from one environment."""

    shared: dict[str, str]
    """What all rungs have in common, as far as a reader needs it to name the ladder."""
    environment: str
    """Fingerprint."""
    rungs: list[Rung]


def shipped_order() -> list[Cell]:
    """The cells of the shipped suite ``ladder``, in its order."""
    return suite.load(suite.find("ladder")).cells()


def ladders(records: Sequence[Record], order: Sequence[Cell]) -> list[Ladder]:
    """The ladders among ``order`` of which at least two rungs have a record, in that order.

    Raises InputError, with the keys that differ, where their records come from several environments.
    """
    groups: dict[str, list[Cell]] = {}
    for cell in order:
        groups.setdefault(cell.twin_key(*RUNG_FIELDS), []).append(cell)
    by_cell: dict[str, list[Record]] = {}
    for record in sorted(records, key=lambda r: r.id):
        by_cell.setdefault(record.cell.digest, []).append(record)
    found = []
    for cells in groups.values():
        runs = {cell: by_cell.get(cell.digest, []) for cell in cells}
        if sum(map(bool, runs.values())) > 1:
            found.append(_ladder(runs))
    return found


def _ladder(runs: dict[Cell, list[Record]]) -> Ladder:
    first = next(iter(runs))
    varied = [name for name in RUNG_FIELDS if len({getattr(cell, name) for cell in runs}) > 1]
    environment = _one_environment([record for records in runs.values() for record in records])
    rungs: list[Rung] = []
    for cell, records in runs.items():
        reference = next((rung for rung in rungs if rung.status == "ok"), None)
        rungs.append(_rung(cell, records, rungs[-1] if rungs else None, reference, varied))
    names = ("model", "source", "method", "r", "precision", "batch_size", "max_length")
    return Ladder(
        shared={name: str(getattr(first, name)) for name in names}, environment=environment, rungs=rungs
    )  # fmt: skip


def _rung(
    cell: Cell, records: list[Record], previous: Rung | None, reference: Rung | None, varied: list[str]
) -> Rung:  # fmt: skip
    ok = [record for record in records if record.status == "ok"]
    derived = [derive(record, lambda _: None) for record in ok or records]
    last = (ok or records)[-1] if records else None
    changes = _changes(previous.cell, cell, varied) if previous else []
    shown = [change.field for change in changes] if previous else varied
    rate = middle(derived, lambda d: d.tokens_per_s)
    peaks = {meter: _peak(derived, meter, bool(ok)) for meter in METERS}
    return Rung(
        name=", ".join(_value(cell, name) for name in shown),
        cell=cell,
        changes=changes,
        status=last.status if last else None,
        message=last.message if last and not ok else None,
        record_ids=[record.id for record in records],
        processes=len(ok),
        tokens_per_s=rate,
        training_peaks=peaks,
        over_previous=_ratios(rate, peaks, previous) if ok else None,
        over_first=_ratios(rate, peaks, reference) if ok else None,
    )


def _changes(before: Cell, after: Cell, varied: list[str]) -> list[Change]:
    values = {name: (str(getattr(before, name)), str(getattr(after, name))) for name in varied}
    return [Change(field=name, before=old, after=new) for name, (old, new) in values.items() if old != new]


def _value(cell: Cell, name: str) -> str:
    value = str(getattr(cell, name))
    return value if name == "backend" else f"{name.replace('_', ' ')} {value}"


def _ratios(rate: float | None, peaks: dict[Meter, float | None], other: Rung | None) -> Ratios | None:
    if other is None or other.status != "ok":
        return None
    return Ratios(
        tokens_per_s=_ratio(rate, other.tokens_per_s),
        training_peaks={meter: _ratio(peaks[meter], other.training_peaks[meter]) for meter in METERS},
    )


def _ratio(value: float | None, other: float | None) -> float | None:
    return None if value is None or not other else value / other


def _peak(derived: list[Derived], meter: Meter, ok: bool) -> float | None:
    if ok:
        return middle(derived, lambda d: d.training_peaks[meter])
    return max(values(derived, lambda d: d.training_peaks[meter]), default=None)


def _one_environment(records: list[Record]) -> str:
    """The fingerprint that all share; InputError with what differs otherwise."""
    if unlike := differing(records):
        told = "; ".join(f"{key}: {', '.join(sorted(found))}" for key, found in unlike.items())
        raise InputError("ladder", f"its records come from several environments ({told})", "give the records of one")
    return records[0].environment.fingerprint
