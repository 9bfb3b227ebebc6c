"""Which records may be set side by side: groups of one cell in one environment, and the pairs they form.

Records of one cell in one environment are repeats of each other and form a side. A pair is two sides whose cells are
equal in all but the backend and whose environments are equal in everything that may sway a measurement. A difference
is allowed only where the reader names its key (``across``), and the finding says it.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from bench.cell import digest_of
from bench.environment import Environment
from bench.errors import InputError
from bench.record import Record
from bench.store import Loaded

SCHEMA = "schema"


@dataclass(frozen=True)
class Pair:
    """Records of both sides; one of the lists is empty where there is no partner, and ``why`` says so."""

    baseline: list[Loaded]
    candidate: list[Loaded]
    why: str = ""
    differences: list[str] = field(default_factory=list)
    """Differing keys that were allowed, each with its values."""


def machine_name(environment: Environment) -> str:
    """What a reader calls the machine: its GPUs, else its processor."""
    names = [gpu.name for gpu in environment.gpus]
    if not names:
        return f"{environment.cpu}, {environment.cpu_cores or '?'} cores, no GPU"
    return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))


def pairs(loaded: Sequence[Loaded], baseline: str = "hf-peft", across: Collection[str] = ()) -> list[Pair]:
    """Every record exactly once as candidate or alone; a baseline side recurs with each of its candidates.

    ``across`` names keys (``driver``, ``gpu0``, ``package.torch``, ``schema``...) that may differ. InputError where no
    record has such a key.
    """
    _known(loaded, across)
    groups: dict[tuple[str, str], dict[str, list[Loaded]]] = defaultdict(lambda: defaultdict(list))
    for one in sorted(loaded, key=lambda one: one.record.id):
        key = one.record.cell.twin_key("backend"), _where(one.record, across)
        groups[key][one.record.cell.backend].append(one)

    found = []
    for (twin, machine), sides in groups.items():
        elsewhere = [other for key, other in groups.items() if key[0] == twin and key[1] != machine]
        base, others = sides.get(baseline, []), [side for name, side in sides.items() if name != baseline]
        if base and others:
            found += [Pair(base, other, differences=_differences([*base, *other], across)) for other in others]
        elif base:
            partners = [side[0] for other in elsewhere for name, side in other.items() if name != baseline]
            found.append(Pair(base, [], _alone(base[0], "with another backend", partners, across)))
        else:
            partners = [other[baseline][0] for other in elsewhere if baseline in other]
            found += [Pair([], side, _alone(side[0], f"with {baseline}", partners, across)) for side in others]
    return found


def pairs_of_sets(
    baseline: Sequence[Loaded], candidate: Sequence[Loaded], across: Collection[str] = ()
) -> list[Pair]:  # fmt: skip
    """One pair a cell, a side from each of two sets of records: two releases, two days.

    A cell that one set alone has is listed alone. ``across`` as in ``pairs``.
    """
    _known([*baseline, *candidate], across)
    sides = [_by_cell(side, across) for side in (baseline, candidate)]
    found = []
    for key in dict.fromkeys([*sides[0], *sides[1]]):
        base, cand = (side.get(key, []) for side in sides)
        why = ""
        if not base or not cand:
            other = sides[0] if cand else sides[1]
            partners = [theirs[0] for (digest, _), theirs in other.items() if digest == key[0]]
            why = _alone((base or cand)[0], "in the other set", partners, across)
        found.append(Pair(base, cand, why, _differences([*base, *cand], across) if base and cand else []))
    return found


def _by_cell(loaded: Sequence[Loaded], across: Collection[str]) -> dict[tuple[str, str], list[Loaded]]:
    groups: dict[tuple[str, str], list[Loaded]] = defaultdict(list)
    for one in sorted(loaded, key=lambda one: one.record.id):
        groups[one.record.cell.digest, _where(one.record, across)].append(one)
    return groups


def _conditions(record: Record) -> dict[str, str]:
    """All that must agree before two records are compared, as flat text: key -> value."""
    return record.environment.comparable() | {SCHEMA: str(record.schema_version)}


def _where(record: Record, across: Collection[str]) -> str:
    """Digest of what must agree, but for ``across``."""
    return digest_of({key: value for key, value in _conditions(record).items() if key not in across})


def _known(loaded: Sequence[Loaded], across: Collection[str]) -> None:
    keys = {key for one in loaded for key in _conditions(one.record)}
    for key in sorted(set(across) - keys) if loaded else ():
        raise InputError(f"--across {key}", "no record has a key of that name", f"one of: {', '.join(sorted(keys))}")


def differing(records: Sequence[Record]) -> dict[str, list[str]]:
    """The keys in which the records' conditions differ, sorted, each with its distinct values in order."""
    facts = [_conditions(record) for record in records]
    keys = sorted({key for fact in facts for key in fact})
    values = {key: list(dict.fromkeys(fact.get(key, "absent") for fact in facts)) for key in keys}
    return {key: found for key, found in values.items() if len(found) > 1}


def _differences(loaded: Sequence[Loaded], across: Collection[str]) -> list[str]:
    found = differing([one.record for one in loaded])
    return [f"{key}: {' and '.join(values)}" for key, values in found.items() if key in across]


def _alone(one: Loaded, partner: str, elsewhere: list[Loaded], across: Collection[str]) -> str:
    """Why a side has no partner; names the keys of the nearest environment that has one."""
    if not elsewhere:
        return f"no record of this cell {partner}"

    def unlike(other: Loaded) -> dict[str, list[str]]:
        found = differing([one.record, other.record])
        return {key: values for key, values in found.items() if key not in across}

    nearest = min(map(unlike, elsewhere), key=len)
    changes = "; ".join(f"{key}: {here} here, {there} there" for key, (here, there) in nearest.items())
    return f"its partner ran in another environment ({changes})"
