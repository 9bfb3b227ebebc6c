"""What a reader may quote: one sentence a measured pair, with all that makes it citable in it."""

from collections.abc import Sequence
from dataclasses import dataclass

from bench.environment import Environment
from bench.parity import Parity
from bench.report.format import UNKNOWN, gib, percent, times
from bench.report.rows import behind, interval_text
from bench.report.view import FindingView, Group, View

PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "unsloth", "unsloth_zoo", "triton")
QUOTED = 4
"""Sentences a machine; the others are in the tables."""


@dataclass(frozen=True)
class Quote:
    """A sentence in parts: the two numbers are links to their finding."""

    finding: FindingView
    before: str
    speed: str
    between: str
    memory: str
    after: str

    @property
    def text(self) -> str:
        return "".join((self.before, self.speed, self.between, self.memory, self.after))


def quotes(group: Group) -> list[Quote]:
    """One a model and precision, best established first: a backend of its own before a variant of the baseline, an
    interval, parity in full, the largest by memory. A pair whose parity failed has no speedup."""
    measured = [one for one in group.findings if one.finding.speedup is not None]
    chosen, cells = [], set()
    for one in sorted(measured, key=_rank):
        cell = one.finding.cell
        if (key := (cell.model, cell.precision)) not in cells:
            cells.add(key)
            chosen.append(one)
    return [_quote(group, one) for one in chosen[:QUOTED]]


def summary(view: View) -> str:
    """How far the results of the page reach."""
    measured = [one for group in view.groups for one in group.findings if one.finding.speedup is not None]
    records = view.records
    disturbed = sum(one.record.status == "contaminated" for one in records)
    failed = sum(one.record.status not in ("ok", "contaminated") for one in records)
    said = [f"{len(records)} runs"]
    if disturbed:
        said.append(f"{disturbed} of them disturbed: what they computed and took counts, their times do not")
    if failed:
        said.append(f"{failed} that did not end ok")
    held = sum(one.finding.parity is not None and one.finding.parity.status == "ok" for one in measured)
    said.append(f"{len(measured)} measured pairs, parity established for {held} of them.")
    return "; ".join(said)


def versions(environment: Environment) -> dict[str, str]:
    """Of the packages that a result depends on most."""
    return {name: package.version for name in PACKAGES if (package := environment.packages.get(name))}


def _rank(one: FindingView) -> tuple[object, ...]:
    found = one.finding
    status = found.parity.status if found.parity else "not checked"
    peak = found.baseline.training_peaks["torch_allocated"] if found.baseline else None
    variant = bool(found.baseline and found.cell.backend.startswith(found.baseline.backend))
    return variant, found.speedup_interval is None, status != "ok", -(peak.median if peak else 0), one.number


def _quote(group: Group, one: FindingView) -> Quote:
    found, row = one.finding, one.row
    weights = ", random weights" if row.random_weights else ""
    ends = found.speedup_interval
    sure = interval_text(ends) if ends else f"{_least(one)} process{'es' * (_least(one) > 1)} a side: no interval"
    speedup = found.speedup or 0
    speed = f"{times(speedup)} the speed" if speedup else ""
    between, saved = f" of {row.baseline} ({sure})", ""
    for meter, name in (("nvml_process", "NVML process"), ("torch_reserved", "torch reserved")):
        memory = found.memory.get(meter)  # type: ignore[call-overload]
        if memory and memory.saving is not None and memory.baseline and memory.candidate:
            less = "less" if memory.saving >= 0 else "more"
            moved = "" if memory.least is None or memory.least == memory.most else (
                f", {percent(memory.least)} to {percent(memory.most)} over the runs")  # fmt: skip
            between += " and "
            saved = f"{percent(abs(memory.saving))} {less} peak memory"
            tail = f" ({gib(memory.candidate.median)} instead of {gib(memory.baseline.median)} GiB, {name}{moved})"
            break
    else:
        tail = ""
    status = _parity(found.parity)
    cell = f"{row.model}{weights}, {row.method}, {row.precision}, {row.recipe}"
    return Quote(
        finding=one, before=f"{row.candidate} trained {cell}, with ", speed=speed, between=between, memory=saved,
        after=f"{tail}. Parity: {status}. {group.machine}; {_said(versions(group.environment))}; {group.dates}.",
    )  # fmt: skip


def _parity(parity: Parity | None) -> str:
    """The status; of a gate that is open for one or two checks, which."""
    if parity is None:
        return UNKNOWN
    held, missing = sum(check.status == "ok" for check in parity.checks), behind(parity)
    if parity.status == "not checked" and held and len(missing) <= 2:
        return f"{held} checks ok, not checked: {', '.join(missing)}"
    return parity.status


def _least(one: FindingView) -> int:
    return min(side.processes for side in (one.finding.baseline, one.finding.candidate) if side)


def _said(found: dict[str, str]) -> str:
    names: Sequence[str] = ("torch", "transformers", "peft", "trl", "unsloth")
    return ", ".join(f"{name} {found[name]}" for name in names if name in found)
