"""Which records may be set side by side: groups of one cell in one environment, and the pairs they form.

Records of one cell in one environment are repeats of each other and form a side. A pair is two sides whose cells are
equal in all but the backend and whose environments are equal in everything that may sway a measurement. A difference
is allowed only where the reader names its key (``across``), and the finding says it.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from bench.cell import digest_of
from bench.environment import Environment
from bench.errors import InputError
from bench.health import computed_well
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


def answered(loaded: Iterable[Loaded]) -> list[Loaded]:
    """Of each cell in one environment the oldest run whose answers count (``bench.health.computed_well``), by age.

    So a cell that is run again until it scores well keeps its first score.
    """
    found: dict[tuple[str, str], Loaded] = {}
    for one in sorted(loaded, key=lambda one: one.record.id):
        if one.record.eval_after and computed_well(one.record):
            found.setdefault((one.record.cell.digest, one.record.environment.fingerprint), one)
    return list(found.values())


def pairs(loaded: Sequence[Loaded], baseline: str = "hf-peft", across: Collection[str] = ()) -> list[Pair]:
    """Every record exactly once as candidate or alone; a baseline side recurs with each of its candidates.

    ``across`` names keys (``driver``, ``gpu0``, ``package.torch``, ``schema``...) that may differ. InputError where no
    record has such a key.
    """
    _known(loaded, across)
    where, twins = _Where(across), {cell.digest: cell for cell in (one.record.cell for one in loaded)}
    twin_keys = {digest: cell.twin_key("backend") for digest, cell in twins.items()}
    groups: dict[tuple[str, str], dict[str, list[Loaded]]] = defaultdict(lambda: defaultdict(list))
    for one in sorted(loaded, key=lambda one: one.record.id):
        key = twin_keys[one.record.cell.digest], where(one.record)
        groups[key][one.record.cell.backend].append(one)
    machines: dict[str, list[str]] = defaultdict(list)
    for twin, machine in groups:
        machines[twin].append(machine)

    found = []
    for (twin, machine), sides in groups.items():
        elsewhere = [groups[twin, other] for other in machines[twin] if other != machine]
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
    where = _Where(across)
    sides = [_by_cell(side, where) for side in (baseline, candidate)]
    by_digest = [_partners(side) for side in sides]
    found = []
    for key in dict.fromkeys([*sides[0], *sides[1]]):
        base, cand = (side.get(key, []) for side in sides)
        why = ""
        if not base or not cand:
            partners = by_digest[0 if cand else 1].get(key[0], [])
            why = _alone((base or cand)[0], "in the other set", partners, across)
        found.append(Pair(base, cand, why, _differences([*base, *cand], across) if base and cand else []))
    return found


def by_all_but_seed(loaded: Sequence[Loaded]) -> dict[str, list[Loaded]]:
    """Records by all of the cell but its seed: the parity gate's controls are among those of the baseline's key."""
    cells = {one.record.cell.digest: one.record.cell for one in loaded}
    keys = {digest: cell.twin_key("seed") for digest, cell in cells.items()}
    found: dict[str, list[Loaded]] = defaultdict(list)
    for one in loaded:
        found[keys[one.record.cell.digest]].append(one)
    return found


def _by_cell(loaded: Sequence[Loaded], where: "_Where") -> dict[tuple[str, str], list[Loaded]]:
    groups: dict[tuple[str, str], list[Loaded]] = defaultdict(list)
    for one in sorted(loaded, key=lambda one: one.record.id):
        groups[one.record.cell.digest, where(one.record)].append(one)
    return groups


def _partners(groups: dict[tuple[str, str], list[Loaded]]) -> dict[str, list[Loaded]]:
    """By cell, one record of each environment."""
    found: dict[str, list[Loaded]] = defaultdict(list)
    for (digest, _), records in groups.items():
        found[digest].append(records[0])
    return found


def _conditions(record: Record) -> dict[str, str]:
    """All that must agree before two records are compared, as flat text: key -> value."""
    return record.environment.comparable() | {SCHEMA: str(record.schema_version)}


class _Where:
    """Digest of what must agree, but for ``across``; made once for all records that share an environment object."""

    def __init__(self, across: Collection[str]) -> None:
        self._across = across
        self._made: dict[tuple[int, int], tuple[Environment, str]] = {}

    def __call__(self, record: Record) -> str:
        key = id(record.environment), record.schema_version
        if key not in self._made:
            content = {name: value for name, value in _conditions(record).items() if name not in self._across}
            self._made[key] = record.environment, digest_of(content)  # kept, so that no other object gets its id
        return self._made[key][1]


def _known(loaded: Sequence[Loaded], across: Collection[str]) -> None:
    if not across:
        return
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
    found = differing([one.record for one in loaded]) if across else {}
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
