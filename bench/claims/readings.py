"""Numbers for the parts of claims from what is no ordinary record: experiments, limits searches, kernel timings."""

from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from bench import stats
from bench.accuracy import compare_accuracy
from bench.claims.claim import Limit
from bench.claims.experiment import Found
from bench.claims.experiments.prompt_format import METRIC
from bench.claims.measure import Measure
from bench.errors import InputError
from bench.groups import machine_name

if TYPE_CHECKING:
    from bench.limit.result import LimitResult
    from kernels_check.page.timings import Timings

Processes = list[dict[str, Any]]
SHARE_RANKS = 16
"""Highest rank at which an adapter's share of the model is judged: claims of small adapters are about usual ranks."""


def of_experiment(name: str, measure: str, found: Sequence[Found]) -> list[Measure]:
    """The number ``measure`` of the latest record of the experiment on each machine; InputError for an unknown one."""
    read = READINGS[name].get(measure)
    if read is None:
        raise InputError(f"experiment {name}", f"has no measure {measure!r}", f"known: {', '.join(READINGS[name])}")
    latest = {(one.record.device, machine_name(one.record.environment)): one
              for one in found if one.record.experiment == name}  # fmt: skip
    made = []
    for one in latest.values():
        for content in read(one):
            record = one.record
            made.append(Measure.model_validate(
                {"machine": machine_name(record.environment), "records": [record.id], "cells": [name]} | content
            ))  # fmt: skip
    return made


def _exact(label: str, value: float, **more: Any) -> dict[str, Any]:
    return {"label": label, "value": value, "low": value, "high": value, **more}


def _formula_error(one: Found) -> Iterable[dict[str, Any]]:
    for entry in one.record.processes[0]["saved"]:
        header = entry["file_bytes"] - entry["tensor_bytes"]
        note = f"{entry['tensor_bytes']:,} bytes of tensors, {header:,} of header"
        yield _exact(f"r {entry['r']}", abs(entry["tensor_bytes"] / entry["formula_bytes"] - 1), note=note)


def _share(one: Found) -> Iterable[dict[str, Any]]:
    """Saved adapter over model file; of larger models the formula with float32 values over bf16 weights."""
    process, name = one.record.processes[0], one.record.settings["model"]
    for entry in process["saved"]:
        if entry["r"] <= SHARE_RANKS:
            yield _exact(f"{name} r {entry['r']}", entry["file_bytes"] / process["model_file_bytes"])
    for model in process["formula"]:
        for entry in model["adapters"]:
            if entry["r"] <= SHARE_RANKS:
                share = entry["fp32_bytes"] / model["model_bytes"]
                yield _exact(f"{model['model']} r {entry['r']}", share, note="by the formula, float32 values")


def _merged_distance(one: Found) -> Iterable[dict[str, Any]]:
    for number, process in enumerate(one.record.processes):
        distance, effect = process["merged_distance"], process["adapter_distance"]
        why = "the adapter moves the outputs by less than the tolerance" if effect <= process["tolerance"] else None
        note = (
            f"{distance:.2g} apart; the adapter moves the outputs by {effect:.2g}; {process['tolerance']:.2g} allowed"
        )
        yield _exact(f"process {number}", distance / process["tolerance"], note=note, why=why)


def _latency(numerator: str, denominator: str) -> Callable[[Found], Iterable[dict[str, Any]]]:
    """One ratio a process, since the variants run in turn within it: a busy machine slows both alike."""

    def read(one: Found) -> Iterable[dict[str, Any]]:
        for kind in ("prefill_s", "decode_s"):
            ratios = [median(p[kind][numerator]) / median(p[kind][denominator]) for p in one.record.processes]
            ratio = stats.ratio(ratios, [1.0] * len(ratios))  # a one-sample t of the logarithms
            low, high = ratio.interval() or (None, None)
            yield {"label": f"{kind.removesuffix('_s')}, {numerator} over {denominator}", "value": ratio.value,
                   "low": low, "high": high, "note": ratio.why or ""}  # fmt: skip

    return read


def _fresh_distance(one: Found) -> Iterable[dict[str, Any]]:
    for process in one.record.processes:
        same = process["least_between_adapters"] <= process["tolerance"]
        why = "the adapters' outputs are too alike to tell one from another" if same else None
        for number, distance in enumerate(process["fresh_distance"]):
            note = f"{distance:.2g} apart, {process['tolerance']:.2g} allowed"
            yield _exact(f"adapter {number}", distance / process["tolerance"], note=note, why=why)


def _switch_gain(one: Found) -> Iterable[dict[str, Any]]:
    """Interval: all samples, those furthest apart."""
    for process in one.record.processes:
        fresh, switch = process["fresh_load_s"], process["switch_s"]
        note = f"a switch takes {median(switch) * 1e3:.2g} ms, a fresh load {median(fresh):.2g} s"
        yield {"label": "fresh load over switch", "value": median(fresh) / median(switch), "note": note,
               "low": min(fresh) / max(switch), "high": max(fresh) / min(switch)}  # fmt: skip


def _full_over_lora(field: str) -> Callable[[Found], Iterable[dict[str, Any]]]:
    def read(one: Found) -> Iterable[dict[str, Any]]:
        methods = one.record.processes[0]["methods"]
        sizes = {name: entry[field] for name, entry in methods.items()}
        note = f"full {sizes['full']:,} bytes, LoRA {sizes['lora']:,}"
        yield _exact(field.removesuffix("_bytes").replace("_", " "), sizes["full"] / sizes["lora"], note=note)

    return read


def _gain(when: str) -> Callable[[Found], Iterable[dict[str, Any]]]:
    def read(one: Found) -> Iterable[dict[str, Any]]:
        paths = [one.folder / f"{prompt}-{when}.jsonl" for prompt in ("bare", "structured")]
        found = compare_accuracy([paths[0]], [paths[1]], METRIC)
        note = f"bare {found.baseline:.0%}, structured {found.candidate:.0%} of {found.items} items"
        yield {"label": f"{when} the fine-tune", "value": found.difference, "low": found.low, "high": found.high,
               "note": note}  # fmt: skip

    return read


READINGS: dict[str, dict[str, Callable[[Found], Iterable[dict[str, Any]]]]] = {
    "adapter-size": {"formula_error": _formula_error, "share": _share},
    "merge": {
        "merged_distance": _merged_distance, "merged_latency": _latency("merged", "base"),
        "unmerged_latency": _latency("unmerged", "base"),
    },
    "switch": {"fresh_distance": _fresh_distance, "switch_gain": _switch_gain},
    "training-state": {
        "optimizer_ratio": _full_over_lora("optimizer_state_bytes"),
        "gradient_ratio": _full_over_lora("gradient_bytes"), "checkpoint_ratio": _full_over_lora("checkpoint_bytes"),
    },
    "prompt-format": {"gain_before": _gain("before"), "gain_after": _gain("after")},
}  # fmt: skip
"""The numbers that each experiment gives, by the names that the catalogue uses."""


def of_limit(limit: Limit, ratio: bool, results: Sequence["LimitResult"]) -> list[Measure]:
    """The limit of the part's backend, or its ratio to the baseline's; the true limit lies below the first failure."""
    from bench.limit.result import over

    sides: dict[str, list[LimitResult]] = {limit.backend: [], limit.baseline: []}
    for one in results:
        cell = one.cell
        same = (one.what, cell.model, cell.precision) == (limit.what, limit.model, limit.precision)
        same = same and (limit.what == "r" or cell.r == limit.r)
        if same and one.backend in sides and one.budget_bytes == round(limit.vram_gib * 2**30):
            sides[one.backend].append(one)
    found = []
    for one in sides[limit.backend]:
        where = one.environment.fingerprint
        partners = [other for other in sides[limit.baseline] if other.environment.fingerprint == where]
        label = f"{limit.model} {limit.precision}, {limit.vram_gib:g} GiB"
        content: dict[str, Any] = {
            "label": f"{one.what} of {one.backend}, {label}", "machine": machine_name(one.environment),
            "records": [p.record_id for p in one.probes], "cells": [one.cell.slug],
        }  # fmt: skip
        if one.validation and not one.validation.holds:
            content["why"] = "the found limit did not hold in fresh processes"
        if not ratio:
            least = one.value if one.value is not None else 0
            found.append(Measure(**content, value=least, low=least, high=one.first_failing_value))
            continue
        for base in partners:
            content["records"] = content["records"] + [p.record_id for p in base.probes]
            times = over(one, base)
            if times is None:
                content["why"] = f"{(base if one.value else one).backend} does not fit at all"
                found.append(Measure(**content, value=None))
                continue
            found.append(Measure(**content, value=times[0], low=times[1], high=times[2]))
    return found


def of_kernels(family: str, timings: Sequence["Timings"]) -> list[Measure]:
    """Unsloth's kernels of a family over eager PyTorch; interval from the quartiles that lie furthest apart."""
    if not timings:
        return []
    from kernels_check.page.timings import speed_rows

    return [
        Measure(
            label=f"{row.timed.candidate}, {row.timed.shape}, {row.timed.dtype}, {row.timed.direction}",
            value=row.ratio, low=row.ratio_low, high=row.ratio_high, machine=machine_name(one.environment),
            records=[f"kernels {one.datetime}"], cells=[family],
            why="measured against eager PyTorch, not against Unsloth's own earlier kernel",
        )
        for one in timings
        for row in speed_rows(one).get(family, [])
        if row.ratio is not None and row.timed.candidate.startswith("unsloth")
    ]  # fmt: skip
