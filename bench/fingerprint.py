"""The dispatch fingerprint: which kernels one forward and backward of a steady step launch.

Taken after training, so that neither the profiler nor the extra pass touches a timed step, a saved adapter or a score.
The optimizer's kernels are left out, since a step would change the adapter; the audit names the optimizer's class and
state. On a CPU the operators stand in for kernels.
"""

import functools
import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.cell import Frozen
from bench.record import FileRef, Fingerprint

FILE = "fingerprint.json"
PASSES = 3
"""Passes that are timed on a GPU: the middle one counts. The first alone says which kernels ran."""
HOST_COPIES = ("Memcpy HtoD", "Memcpy DtoH")
"""How the profiler's names of copies between host and device begin."""

_VOLATILE = [
    (re.compile(r"(?<![0-9A-Za-z])0x[0-9a-fA-F]{4,}"), "*"),  # pointers (not the 0x128 of a 160x128 tile)
    (re.compile(r"(?<![0-9A-Za-z])(?:[0-9a-f]{16,}|[0-9]{9,})(?![0-9A-Za-z])"), "*"),  # hashes, ids (not bf16bf16)
    (re.compile(r"_(?:\d+(?:d|c|de))+$"), ""),  # Triton's argument specialisation, as in name_0d1d2de
    (re.compile(r"^(triton_[a-z]+_fused_.*?)_\d+$"), r"\1"),  # inductor numbers its kernels as it meets them
]

_ATTENTION = [
    ("flash_attn::", "flash_attention_2", "flash"),
    ("xformers", "xformers", "memory-efficient"),
    ("flex_attention", "flex_attention", "flex"),
    ("_scaled_dot_product_flash_attention", "sdpa", "flash"),
    ("_scaled_dot_product_efficient_attention", "sdpa", "memory-efficient"),
    ("_scaled_dot_product_cudnn_attention", "sdpa", "cudnn"),
    ("_scaled_dot_product_attention_math", "sdpa", "math"),
]
"""Part of an operator's name, the implementation that calls it, and the kind of kernel under it."""
_SDPA, _BACKWARD = "::_scaled_dot_product_", "_backward"


class Launched(Frozen):
    """A kernel of one fingerprint."""

    name: str
    count: int
    total_us: float


class Changed(Frozen):
    """A kernel that two fingerprints launch another number of times."""

    name: str
    count_a: int
    count_b: int


class Difference(Frozen):
    """What sets two fingerprints apart; all lists empty where the same kernels ran equally often."""

    only_a: list[Launched]
    only_b: list[Launched]
    changed: list[Changed]


def diff(a: Path, b: Path) -> Difference:
    """Kernels that only one of two fingerprint files has, and changed counts, each sorted by name."""
    left, right = _read(a), _read(b)
    return Difference(
        only_a=[k for n, k in left.items() if n not in right],
        only_b=[k for n, k in right.items() if n not in left],
        changed=[
            Changed(name=n, count_a=k.count, count_b=right[n].count)
            for n, k in left.items()
            if n in right and right[n].count != k.count
        ],
    )


def measure(step: Callable[[], Any], folder: Path) -> tuple[Fingerprint, dict[str, str]]:
    """Profile one call of ``step``; write FILE; return the fingerprint and the audit's readings of what it did.

    The readings are ``attention_dispatched`` (sdpa, eager, ...), ``attention_kernel`` (flash, math, ...) and
    ``forwards_per_layer``, each left out where it cannot be told.
    """
    gpu, (launched, operators) = _on_gpu(), _profiled(step)
    shown = {"step": "forward and backward", "kernels": [k.model_dump() for k in launched]}
    (folder / FILE).write_text(json.dumps(shown, indent=1) + "\n")
    fingerprint = Fingerprint(
        file=FileRef.of(folder / FILE, folder),
        device="cuda" if gpu else "cpu",
        kernels=len(launched),
        launches=sum(k.count for k in launched),
        device_s=sum(k.total_us for k in launched) / 1e6,
        passes_s=[_kernels_s(launched)],
        sha256=sha256(launched),
    )
    return fingerprint, attention(operators.keys() | {k.name for k in launched}) | forwards(operators)


def pass_s(step: Callable[[], Any]) -> float:
    """Profile one more call of ``step``: its seconds in kernels, as ``Fingerprint.passes_s`` has them."""
    return _kernels_s(_profiled(step)[0])


def pass_s_of(file: Path) -> float:
    """The same of the pass that a fingerprint's file has."""
    return _kernels_s(list(_read(file).values()))


def _on_gpu() -> bool:
    """Whether kernels are profiled, or operators on a CPU."""
    import torch

    return torch.cuda.is_available()


def _kernels_s(launched: list[Launched]) -> float:
    """Without copies between host and device: engines of their own make them, as a rule beside kernels."""
    return sum(k.total_us for k in launched if not k.name.startswith(HOST_COPIES)) / 1e6


def _profiled(step: Callable[[], Any]) -> tuple[list[Launched], Counter[str]]:
    """What one call of ``step`` launched, and how often each operator ran."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    gpu = _on_gpu()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities) as p:
        step()
        if gpu:
            torch.cuda.synchronize()
    if gpu:
        kernels, operators = _of_kineto(p.profiler.kineto_results.events())
    else:
        called = [e for e in p.events() if _is_operator(e.name) and not getattr(e, "is_user_annotation", False)]
        called = [e for e in called if not _sent_on(e)]
        kernels, operators = [(e.name, _own_us(e)) for e in called], Counter(e.name for e in called)
    if not kernels:
        raise RuntimeError("the profiler saw no kernel")
    return collect(kernels), operators


def _of_kineto(events: Any) -> tuple[list[tuple[str, float]], Counter[str]]:
    """Every launch on the GPU as (name, microseconds), and how often each operator ran.

    From the profiler's own list: building torch's tree of events takes seconds for the tens of thousands of an 8B pass.
    """
    import torch

    cuda, demangle = torch.autograd.DeviceType.CUDA, functools.cache(torch._C._demangle)
    kernels, operators = [], Counter[str]()
    for event in events:
        name = event.name()
        if event.is_user_annotation() or name.startswith("["):  # "[memory]" and the like are no launches
            continue
        if event.device_type() == cuda:
            kernels.append((demangle(name), event.duration_ns() / 1e3))
        elif _is_operator(name):
            operators[name] += 1
    return kernels, operators


def collect(kernels: list[tuple[str, float]]) -> list[Launched]:
    """Counts and total times by normalised name, sorted by name, from (name, microseconds) of every launch."""
    counts: Counter[str] = Counter()
    times: defaultdict[str, float] = defaultdict(float)
    for raw, elapsed_us in kernels:
        name = normalise(raw)
        counts[name] += 1
        times[name] += elapsed_us
    return [Launched(name=n, count=counts[n], total_us=round(times[n], 3)) for n in sorted(counts)]


def normalise(name: str) -> str:
    """A kernel's name without the parts that change from one process or compilation to the next."""
    for pattern, replacement in _VOLATILE:
        name = pattern.sub(replacement, name)
    return name


def sha256(launched: list[Launched]) -> str:
    """Over names and counts, in name order; times do not count."""
    return hashlib.sha256(json.dumps([(k.name, k.count) for k in launched]).encode()).hexdigest()


def attention(names: set[str]) -> dict[str, str]:
    """Which attention ran, from the names of operators and kernels.

    A softmax outside every known attention operator is eager attention: the loss uses log-softmax or fused kernels.
    """
    found = {(how, kind) for part, how, kind in _ATTENTION for n in names if part in n}
    if not found and any("flash_fwd" in n for n in names):
        found = {("flash_attention_2", "flash")}
    if not found and "aten::scaled_dot_product_attention" in names:
        found = {("sdpa", "unknown")}
    if not found and names & {"aten::softmax", "aten::_softmax"}:
        found = {("eager", "softmax")}
    if not found:
        return {}
    return {
        "attention_dispatched": ", ".join(sorted({how for how, _ in found})),
        "attention_kernel": ", ".join(sorted({kind for _, kind in found})),
    }


def forwards(operators: Counter[str]) -> dict[str, str]:
    """``forwards_per_layer``, told by PyTorch's attention: how often it ran forward for each time backward.

    2 where gradient checkpointing computes every block again, 1 where it does not. Compiled blocks call these operators
    too. Left out where no such operator has a backward (eager attention, other libraries).
    """
    back = {n.removesuffix(_BACKWARD): c for n, c in operators.items() if _SDPA in n and n.endswith(_BACKWARD)}
    if not back:
        return {}
    ratio = sum(operators[name] for name in back) / sum(back.values())
    return {"forwards_per_layer": f"{ratio:.2g}"}


_MODE = "PythonDispatchMode"
"""Stands between an operator and itself where a dispatch mode (``bench.cpu``) sent it on."""


def _sent_on(event: Any) -> bool:
    mode = event.cpu_parent
    return (
        mode is not None and mode.name == _MODE and mode.cpu_parent is not None and mode.cpu_parent.name == event.name
    )


def _own_us(event: Any) -> float:
    """An operator's time without the operators it calls; one that a mode sent on is one with it."""
    modes = [child for child in event.cpu_children if child.name == _MODE]
    again = [child for mode in modes for child in mode.cpu_children if child.name == event.name]
    return float(event.self_cpu_time_total) + sum(map(_own_us, again))


def _is_operator(name: str) -> bool:
    return "::" in name and not name.startswith("autograd::")


def _read(file: Path) -> dict[str, Launched]:
    kernels = json.loads(file.read_text())["kernels"]
    return {k["name"]: Launched.model_validate(k) for k in kernels}
