"""Runs one case with one candidate and judges the outcome."""

import re
import time
import warnings
import zlib
from dataclasses import dataclass
from typing import Any

from kernels_check.case import Candidate, Case, Inputs, Results
from kernels_check.launches import watched
from kernels_check.loading import Missing
from kernels_check.numerics import Bound, Worst, compare
from kernels_check.poison import Memory, poisoned
from kernels_check.record import Entry, Error

NO_CUDA = "Torch not compiled with CUDA enabled"
"""What torch says on a CPU where an older release asks CUDA for what the interpreter does not stand in for."""
SWITCHED_OFF = re.compile(r"disabl|fall(s|ing)? back|switched off", re.I)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The reference's results of one case and dtype."""

    inputs: Inputs
    results: Results
    bounds: dict[str, Bound]


def expect(case: Case, dtype: str, seed: int) -> Expected:
    """The float64 reference, on the CPU, from the very values that the candidates get."""
    inputs = _draw(case, dtype, seed)
    exact = {name: value.detach().double() if _is_float(value) else value for name, value in inputs.items()}
    for name in case.gradients:
        exact[name].requires_grad_()
    results = _with_gradients(case.reference(exact), exact, case.gradients)
    results = {name: value.detach() for name, value in results.items()}
    exact = {name: value.detach() if _is_float(value) else value for name, value in exact.items()}
    bounds = case.bounds(exact, results)
    if missing := set(bounds) ^ set(results):
        raise ValueError(f"{case.id}: results and bounds differ in {sorted(missing)}")
    return Expected(inputs=exact, results=results, bounds=bounds)


def run_one(case: Case, dtype: str, candidate: str, device: str, seed: int, expected: Expected | None) -> Entry:
    """Run one candidate and compare. Never raises for what the candidate does.

    ``expected`` is None where no candidate can run on this device.
    """
    import torch

    chosen, memory, start = case.candidates[candidate], Memory(), time.perf_counter()
    drawn = _draw(case, dtype, seed)
    entry: dict[str, Any] = dict(family=case.family, case=case.name, dtype=dtype, candidate=candidate, seed=seed)
    entry["shapes"] = {name: list(value.shape) for name, value in drawn.items() if isinstance(value, torch.Tensor)}
    if expected is None or (device == "cpu" and chosen.cpu_reason):
        return Entry(status="not runnable here", reason=chosen.cpu_reason, **entry)
    inputs = {
        name: memory.copied(value, name, device) if isinstance(value, torch.Tensor) else value
        for name, value in drawn.items()
    }
    for name in case.gradients:
        inputs[name].requires_grad_()
    with warnings.catch_warnings(record=True) as said, watched() as launched:
        warnings.simplefilter("always")
        try:
            with poisoned(memory):
                got = _with_gradients(chosen.call(inputs), inputs, case.gradients)
            if device == "cuda":
                torch.cuda.synchronize()
        except Missing as missing:
            return Entry(status="not runnable here", reason=str(missing), **entry)
        except Exception as error:  # whatever a kernel under test raises is that case's failure
            if device == "cpu" and NO_CUDA in str(error):
                return Entry(status="not runnable here", reason="calls CUDA where no interpreter stands in", **entry)
            entry["reason"] = f"{type(error).__name__}: {error}"
            got = None
    entry["launched"] = dict(sorted(launched.items()))
    entry["switched_off"] = sorted({str(w.message) for w in said if SWITCHED_OFF.search(str(w.message))})
    entry["seconds"] = round(time.perf_counter() - start, 4)
    if got is None:
        return Entry(status="failed", **entry)
    return _judged(case, chosen, drawn, inputs, got, expected, memory, entry)


def _judged(
    case: Case, chosen: Candidate, drawn: Inputs, inputs: Inputs, got: Results, expected: Expected, memory: Memory,
    entry: dict[str, Any],
) -> Entry:  # fmt: skip
    import torch

    dtype = getattr(torch, entry["dtype"])
    faults = memory.damage()
    faults += [f"did not return {name}" for name in set(expected.results) - set(chosen.lacks) - set(got)]
    faults += [f"overwrote the input {name}" for name in _overwritten(drawn, inputs) if name not in chosen.overwrites]
    bounds = chosen.bounds(expected.inputs, expected.results) if chosen.bounds else expected.bounds
    worst = {
        name: compare(got[name], value, bounds[name], dtype) for name, value in expected.results.items() if name in got
    }
    gradients = {f"d{name}" for name in case.gradients}
    entry["forward"] = _error({n: w for n, w in worst.items() if n not in gradients})
    entry["gradient"] = _error({n: w for n, w in worst.items() if n in gradients})
    faults += [f"{n}: {w.reason or f'{w.error:.3g} tolerances at {w.index}'}" for n, w in worst.items() if w.error > 1]
    if faults:
        return Entry(status="failed", reason="; ".join(faults), known_fault=chosen.known_fault, **entry)
    if unseen := [k for k in chosen.kernels if not any(re.fullmatch(k, name) for name in entry["launched"])]:
        return Entry(status="not exercised", reason=f"not launched: {', '.join(unseen)}", **entry)
    return Entry(status="passed", **entry)


def _draw(case: Case, dtype: str, seed: int) -> Inputs:
    import torch

    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{case.id}/{dtype}".encode()))
    return case.draw(generator, getattr(torch, dtype))


def _with_gradients(results: Results, inputs: Inputs, wanted: tuple[str, ...]) -> Results:
    """Add ``dX`` for each wanted input X, unless the results hold it already."""
    import torch

    missing = [name for name in wanted if f"d{name}" not in results]
    outputs = {name: value for name, value in results.items() if inputs.get(f"d{name}") is not None}
    if not missing:
        return results
    grads = torch.autograd.grad(
        list(outputs.values()),
        [inputs[name] for name in missing],
        [inputs[f"d{name}"] for name in outputs],
        allow_unused=True,
    )
    return results | {f"d{name}": grad for name, grad in zip(missing, grads, strict=True) if grad is not None}


def _overwritten(drawn: Inputs, inputs: Inputs) -> list[str]:
    import torch

    return [
        name
        for name, value in drawn.items()
        if isinstance(value, torch.Tensor)
        and not torch.equal(value.nan_to_num(12345.0), inputs[name].detach().cpu().nan_to_num(12345.0))
    ]


def _is_float(value: Any) -> bool:
    return hasattr(value, "is_floating_point") and bool(value.is_floating_point())


def _error(worst: dict[str, Worst]) -> Error | None:
    if not worst:
        return None
    name, found = max(worst.items(), key=lambda item: item[1].error)
    return Error(
        result=name,
        tolerances=found.error,
        index=list(found.index),
        got=f"{found.got:.9g}",
        expected=f"{found.expected:.9g}",
        tolerance=found.tolerance,
    )
