"""One paragraph that a reader can quote: what the candidate gives over plain Hugging Face + PEFT, over all settings.

From the measures of three claims of the catalogue: speed over every pair, memory over every pair under each meter, and
the length that fits into the same memory. Settings weigh alike, however often they were run.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import median

from bench.claims.measure import Measure
from bench.claims.verdict import ClaimVerdict
from bench.derived import METERS
from bench.groups import machine_name
from bench.record import Record
from bench.report.format import percent, times
from bench.report.rows import METER_NAMES
from bench.report.view import dates

SPEED, MEMORY, CONTEXT = "speed-2-5x", "memory-80", "ctx-"
PACKAGES = ("torch", "transformers", "peft", "trl", "unsloth")


def paragraph(verdicts: Sequence[ClaimVerdict], records: Sequence[Record]) -> str:
    """With machine, dates and versions of the records behind it; empty where neither speed nor memory was measured,
    or none of these is among ``records``."""
    speeds = _measures(one for one in verdicts if one.id == SPEED)
    savings = [one for one in _measures(one for one in verdicts if one.id == MEMORY) if one.meter]
    lengths = _measures((one for one in verdicts if one.id.startswith(CONTEXT)), metric="limit_ratio")
    ids = {id for one in [*speeds, *savings, *lengths] for id in one.records}
    used = [record for record in records if record.id in ids]
    if not used or not (speeds or savings):
        return ""
    said = [_speed(speeds)] if speeds else []
    if savings:
        meters = [(meter, _settings(one for one in savings if one.meter == meter)) for meter in METERS]
        told = [f"{percent(median(v), 0)} ({percent(min(v), 0)} to {percent(max(v), 0)}) by {METER_NAMES[meter]}"
                for meter, v in meters if v]  # fmt: skip
        said.append(f"its peak memory was lower by {', '.join(told)}: median and extremes of "
                    f"{_number(max(len(v) for _, v in meters))}")  # fmt: skip
    fitted = _settings(lengths)
    said.append(f"and {times(median(fitted))} the sequence length fitted into the same memory, in the median of "
                f"{len(fitted)} budget{'s' * (len(fitted) != 1)} ({times(min(fitted))} to {times(max(fitted))})"
                if fitted else
                "and the length that fits into the same memory was not measured")  # fmt: skip
    return f"{_about(used)}: {'; '.join(said)}."


def _speed(speeds: Sequence[Measure]) -> str:
    values = _settings(speeds)
    sure = sum(one.low is not None for one in speeds)
    return (
        f"Unsloth trained at {times(median(values))} the tokens/s of plain Hugging Face + PEFT in the median of "
        f"{_number(len(values))} ({times(min(values))} to {times(max(values))}; {sure or 'none'} with an interval)"
    )


def _number(settings: int) -> str:
    return f"{settings} setting{'s' * (settings != 1)}"


def _measures(claims: Iterable[ClaimVerdict], metric: str | None = None) -> list[Measure]:
    return [
        judged.measure
        for claim in claims for part in claim.parts if metric in (None, part.metric) for judged in part.judgements
        if judged.measure.value is not None and not judged.measure.why
    ]  # fmt: skip


def _settings(measures: Iterable[Measure]) -> list[float]:
    """One value a setting: the median of its repeats in other environments."""
    by_label: dict[str, list[float]] = defaultdict(list)
    for one in measures:
        by_label[one.label].append(one.value or 0.0)
    return [median(values) for values in by_label.values()]


def _about(used: Sequence[Record]) -> str:
    machines = sorted({machine_name(record.environment) for record in used})
    versions: dict[str, set[str]] = defaultdict(set)
    for record in used:
        for name in PACKAGES:
            if package := record.environment.packages.get(name):
                versions[name].add(package.version)
    told = [f"{name} {' and '.join(sorted(versions[name]))}" for name in PACKAGES if name in versions]
    return ", ".join([" and ".join(machines), dates(used), *told])
