"""Verdicts: the catalogue's rules applied to what was measured. docs/claims.md gives the reason of every rule.

verdicts(Evidence.read([Path("results")])) -> list[ClaimVerdict]
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal

from bench import store
from bench.cell import Frozen
from bench.claims import experiment, measure, readings
from bench.claims.claim import Claim, Part, Rule, catalogue
from bench.claims.experiment import Found
from bench.claims.measure import Measure
from bench.errors import InputError
from bench.store import Loaded

if TYPE_CHECKING:
    from bench.limit.result import LimitResult
    from kernels_check.page.timings import Timings

Verdict = Literal["supported", "partly", "refuted", "inconclusive", "not testable here", "not run yet"]
Judged = Literal["supported", "refuted", "inconclusive", "set aside"]
HEADLINE_METER = "nvml_process"
"""What the card must hold: the meter of a claim's one-line number, and of a budget."""


@dataclass(frozen=True)
class Evidence:
    """All that verdicts may rest on."""

    records: list[Loaded] = field(default_factory=list)
    experiments: list[Found] = field(default_factory=list)
    limits: list["LimitResult"] = field(default_factory=list)
    kernels: list["Timings"] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)
    """Files that could not be read, each with the reason."""

    @classmethod
    def read(cls, folders: Sequence[Path], loaded: Sequence[Loaded] | None = None) -> "Evidence":
        """Everything below the folders; each record and experiment once. ``loaded``: their records, if read before."""
        from bench.limit import result

        records: dict[str, Loaded] = {}
        experiments: dict[str, Found] = {}
        found = cls()
        for folder in folders:
            good, bad = ([], []) if loaded is not None else store.load(folder)
            made, broken = experiment.load(folder)
            records |= {one.record.id: one for one in good}
            experiments |= {one.record.id: one for one in made}
            found.unread.extend([f"{one.path}: {one.reason}" for one in bad] + broken)
            try:
                found.limits.extend(one for one in result.load(folder) if one not in found.limits)
            except InputError as error:
                found.unread.append(str(error))
            found.kernels.extend(_kernels(folder, found.unread))
        records |= {one.record.id: one for one in loaded or ()}
        found.records.extend(sorted(records.values(), key=lambda one: one.record.id))
        found.experiments.extend(sorted(experiments.values(), key=lambda one: one.record.id))
        return found


def _kernels(folder: Path, unread: list[str]) -> list["Timings"]:
    """Timings of ``peftmark kernels speed`` in the folder's ``kernels``."""
    from kernels_check.page.reading import read
    from kernels_check.page.timings import Timings

    found = []
    for path in sorted((folder / "kernels").glob("*.json")):
        if b'"benchmarks"' in path.read_bytes():
            try:
                content = read(path)
            except InputError as error:
                unread.append(str(error))
            else:
                found += [content] if isinstance(content, Timings) else []
    return found


class Judgement(Frozen):
    """A measure and what the rule says of it."""

    measure: Measure
    verdict: Judged
    """set aside: shown, but it decides nothing (no interval, a failed run or parity, another meter than the rule's)."""


class PartVerdict(Frozen):
    """One part of a claim."""

    metric: str
    unit: str
    rule: Rule
    claimed_low: float | None
    claimed_high: float | None
    verdict: Verdict
    measured: float | None
    """Median of the measures that count."""
    low: float | None
    high: float | None
    """The lowest and the highest end of their intervals."""
    judgements: list[Judgement]
    note: str


class ClaimVerdict(Frozen):
    """One claim: its parts' verdicts taken together; the numbers are those of its first part with any."""

    id: str
    group: str
    statement: str
    source: str
    date: str
    claimed_low: float | None
    claimed_high: float | None
    measured: float | None
    low: float | None
    high: float | None
    unit: str
    verdict: Verdict
    cells: list[str]
    records: list[str]
    note: str
    stated: tuple[str, ...] = ()
    chosen: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    parts: list[PartVerdict] = []


def verdicts(evidence: Evidence, claims: Sequence[Claim] | None = None) -> list[ClaimVerdict]:
    """A verdict of every claim (default: the catalogue's), in order."""
    return [_claim(claim, evidence) for claim in (claims if claims is not None else catalogue().values())]


def judge(rule: Rule, one: Measure) -> Judged:
    """What one measured number says under a rule: supported or refuted only where its whole interval does."""
    low, high = one.low, one.high
    if one.why or one.value is None or (low is None and high is None):
        return "set aside"
    if rule.kind in ("at_most", "equal"):
        bound = (rule.high or 0.0) + rule.rounding
        held, failed = high is not None and high <= bound, low is not None and low > bound
    elif rule.kind in ("non_inferior", "plateau"):
        bound = -(rule.high or 0.0)
        held, failed = low is not None and low > bound, high is not None and high < bound
    else:
        bound = (rule.high if rule.kind == "up_to" else rule.low) or 0.0
        bound -= rule.rounding
        held = low is not None and low >= bound
        failed = rule.kind != "up_to" and high is not None and high < bound
    return "supported" if held else "refuted" if failed else "inconclusive"


def together(found: Sequence[str], *, anywhere: bool = False) -> Verdict:
    """Verdicts of several cells or parts as one; ``anywhere``: one that holds is enough."""
    kinds = set(found)
    if kinds == {"supported"} or (anywhere and "supported" in kinds):
        return "supported"
    if kinds == {"refuted"}:
        return "refuted"
    return "partly" if kinds & {"supported", "partly"} else "inconclusive"


def _measures(part: Part, evidence: Evidence) -> list[Measure]:
    if part.metric == "experiment":
        return readings.of_experiment(part.experiment or "", part.measure or "", evidence.experiments)
    if part.limit:
        return readings.of_limit(part.limit, part.metric == "limit_ratio", evidence.limits)
    if part.metric == "kernel_speedup":
        return readings.of_kernels(part.measure or "", evidence.kernels)
    if part.metric == "vram_gib":
        return measure.vram(part, evidence.records)
    if part.metric == "accuracy_by_rank":
        return measure.by_rank(part, evidence.records)
    return measure.of_contrasts(part, evidence.records)


def _part(part: Part, evidence: Evidence) -> PartVerdict:
    measures = _measures(part, evidence)
    rule = part.rule
    other_meters = [m for m in measures if part.metric == "vram_gib" and m.meter not in (None, HEADLINE_METER)]
    judged = [
        Judgement(measure=one, verdict="set aside" if one in other_meters else judge(rule, one)) for one in measures
    ]
    counted = [one for one in judged if one.verdict != "set aside"]
    verdict: Verdict = "not run yet"
    if counted:
        by_meter: dict[str | None, list[str]] = {}
        for one in counted:
            by_meter.setdefault(one.measure.meter, []).append(one.verdict)
        for one in judged:
            if one.measure.meter in by_meter and one not in counted and one.measure not in other_meters:
                by_meter[one.measure.meter] += _dissent(rule, one.measure, by_meter[one.measure.meter])
        verdict = together([together(said, anywhere=rule.kind == "up_to") for said in by_meter.values()])
    elif measures:
        verdict = "inconclusive"
    shown = [one.measure for one in counted or judged]
    if any(one.meter for one in shown):
        shown = [one for one in shown if one.meter == HEADLINE_METER] or shown
    known = [one for one in shown if one.value is not None]
    upper = rule.kind in ("at_most", "equal", "up_to")
    tolerance = rule.kind in ("non_inferior", "plateau")
    return PartVerdict(
        metric=part.measure or part.metric, unit=part.shown_unit, rule=rule,
        claimed_low=-(rule.high or 0.0) if tolerance else None if rule.kind in ("at_most", "equal") else
        rule.high if rule.kind == "up_to" else rule.low,
        claimed_high=rule.high if upper or rule.kind == "range" else None,
        verdict=verdict, judgements=judged, note=_note(rule, judged, other_meters),
        measured=median(one.value for one in known if one.value is not None) if known else None,
        low=min((one.low for one in known if one.low is not None), default=None),
        high=max((one.high for one in known if one.high is not None), default=None),
    )  # fmt: skip


def _dissent(rule: Rule, one: Measure, said: Sequence[str]) -> list[str]:
    """A number without an interval decides nothing; where it points elsewhere than those that do, all stays open."""
    if one.why or one.value is None:
        return []
    point = judge(rule, one.model_copy(update={"low": one.value, "high": one.value}))
    return [] if {point} == set(said) else ["inconclusive"]


def _note(rule: Rule, judged: Sequence[Judgement], other_meters: Sequence[Measure]) -> str:
    counted = [one for one in judged if one.verdict != "set aside"]
    said = []
    for verdict in ("supported", "refuted", "inconclusive"):
        if number := sum(one.verdict == verdict for one in counted):
            said.append(f"{verdict} in {number} of {len(counted)}")
    points = [one.measure for one in judged if one.verdict == "set aside" and one.measure not in other_meters]
    single = [one for one in points if not one.why and one.value is not None]
    if single:
        values = sorted(one.value for one in single if one.value is not None)
        shown = f"{values[0]:.3g}" if len(values) == 1 else f"{values[0]:.3g} to {values[-1]:.3g}"
        said.append(f"{len(single)} without an interval (point estimate {shown})")
    for why, number in Counter(_in_short(one.why) for one in points if one.why).items():
        said.append(f"set aside: {why}" + (f" ({number} times)" if number > 1 else ""))
    if rule.kind == "up_to" and counted and all(one.verdict == "inconclusive" for one in counted):
        best = max(one.measure.value or 0.0 for one in counted)
        said.append(f"not reached in any tested cell (highest {best:.3g}), which cannot refute 'up to'")
    if shared := sum(one.measure.note == measure.SHARED for one in counted):
        said.append(f"{measure.SHARED} in {shared}")
    if unchecked := sum(one.measure.parity == "not checked" for one in judged):
        said.append(f"parity not checked in {unchecked}")
    return "; ".join(said)


def _in_short(why: str) -> str:
    """Without the numbers of a disturbance, which differ from run to run; each record has them."""
    disturbed = re.match(r"(\S+: contaminated)\b", why)
    return f"{disturbed[1]}, so its rate does not count" if disturbed else why.splitlines()[0]


def commands(claim: Claim) -> list[str]:
    """What to run for a claim."""
    found = [c for part in claim.parts if part.limit for c in part.limit.commands(ratio=part.metric == "limit_ratio")]
    if any(part.metric == "kernel_speedup" for part in claim.parts):
        found.append("peftmark kernels speed")
    if any(part.suites or part.experiment for part in claim.parts):
        found.append(f"peftmark claims run {claim.id}")
    return list(dict.fromkeys(found))


def _claim(claim: Claim, evidence: Evidence) -> ClaimVerdict:
    parts = [_part(part, evidence) for part in claim.parts]
    measures = [one.measure for part in parts for one in part.judgements]
    verdict: Verdict
    if claim.not_testable:
        verdict, note = "not testable here", claim.not_testable
    elif all(part.verdict == "not run yet" for part in parts):
        verdict, note = "not run yet", "run: " + "; ".join(commands(claim))
    else:
        verdict = together(["inconclusive" if p.verdict == "not run yet" else p.verdict for p in parts])
        said = [f"{part.metric}: {part.note or part.verdict}" for part in parts]
        if any(part.verdict == "not run yet" for part in parts):
            said.append("for what is not run yet: " + "; ".join(commands(claim)))
        machines = dict.fromkeys(one.machine for one in measures if one.machine)
        if claim.gpu and machines:
            said.append(f"claimed on {claim.gpu}; measured on {', '.join(machines)}")
        note = "; ".join(said + ([claim.note] if claim.note else []))
    first = next((part for part in parts if part.measured is not None), parts[0] if parts else None)
    return ClaimVerdict(
        id=claim.id, group=claim.group, statement=claim.statement, source=claim.source, date=claim.date,
        claimed_low=first.claimed_low if first else None, claimed_high=first.claimed_high if first else None,
        measured=first.measured if first else None, low=first.low if first else None,
        high=first.high if first else None,
        unit=first.unit if first else "", verdict=verdict, note=note,
        cells=list(dict.fromkeys(cell for one in measures for cell in one.cells)),
        records=list(dict.fromkeys(id for one in measures for id in one.records)),
        stated=claim.stated, chosen=claim.chosen, others=claim.others, parts=parts,
    )  # fmt: skip
