"""Toy kernels, each with one fault, to show what the check says of it. Run only in a check's own process."""

import os
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import triton
import triton.language as tl

from kernels_check.case import Candidate, Case, Inputs, Results
from kernels_check.loading import Missing
from kernels_check.numerics import Bound

WIDTH, ROWS = 13, 300


@triton.jit
def column_sums(x, y, n_rows, width, SIGN: tl.constexpr, LAST: tl.constexpr, PAST: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for row in range(n_rows):
        total += tl.load(x + row * width + columns, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + columns, SIGN * total, mask=columns < width - LAST + PAST)


@triton.jit
def column_sums_in_storage_dtype(x, y, n_rows, width, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    columns = tl.arange(0, BLOCK)
    mask = columns < width
    total = tl.load(x + columns, mask=mask, other=0.0)
    for row in range(1, n_rows):
        total += tl.load(x + row * width + columns, mask=mask, other=0.0)
    tl.store(y + columns, total, mask=mask)


@triton.jit
def block_sum(x, y, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    tl.store(y, tl.sum(tl.load(x + tl.arange(0, BLOCK)), axis=0))


def cases() -> list[Case]:
    """One case, many candidates; then a reduction; then a case in whose process nothing survives."""
    kernel = ("column_sums",)
    candidates = {
        "right": Candidate(call=_sums, kernels=kernel),
        "wrong sign": Candidate(call=partial(_sums, sign=-1.0), kernels=kernel),
        "unwritten column": Candidate(call=partial(_sums, last=1), kernels=kernel),
        "written past the end": Candidate(call=partial(_sums, past=1), kernels=kernel),
        "16-bit accumulator": Candidate(call=_storage_sums, kernels=("column_sums_in_storage_dtype",)),
        "no launch": Candidate(call=lambda inputs: {"y": inputs["x"].double().sum(0).float()}, kernels=kernel),
        "overwrites its input": Candidate(call=_overwriting, kernels=kernel),
        "declared overwriting": Candidate(call=_overwriting, kernels=kernel, overwrites=("x",)),
        "raises": Candidate(call=_raising, kernels=kernel),
        "absent": Candidate(call=_absent, kernels=kernel),
        "asks CUDA": Candidate(call=_asking, kernels=kernel),
        "GPU only": Candidate(call=_raising, kernels=kernel, cpu_reason="needs tensor cores"),
        "known": Candidate(call=partial(_sums, sign=-1.0), kernels=kernel, known_fault="reported upstream"),
        "says that it falls back": Candidate(call=_warning, kernels=kernel),
    }
    made = [_case("sums", candidates), _case("sum in bfloat16", {"tree": _TREE}, draw=_ones, reference=_block)]
    return [*made, _case("dies", {"killed": Candidate(call=_dying, kernels=())}), _case("never reached", candidates)]


def _case(
    name: str,
    candidates: dict[str, Candidate],
    draw: Callable[..., Inputs] | None = None,
    reference: Callable[..., Results] | None = None,
) -> Case:
    return Case(
        family="toy", name=name, draw=draw or _draw, reference=reference or (lambda i: {"y": i["x"].sum(0)}),
        bounds=lambda i, r: {"y": Bound(steps=ROWS, magnitude=i["x"].abs().sum(0), dtype=torch.float32)},
        candidates=candidates, dtypes=("bfloat16",),
    )  # fmt: skip


def _draw(generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    return {"x": torch.randn((ROWS, WIDTH), generator=generator).to(dtype)}


def _ones(generator: torch.Generator, dtype: torch.dtype) -> Inputs:
    return {"x": torch.full((1024,), 1.0, dtype=dtype)}


def _block(inputs: Inputs) -> Results:
    return {"y": inputs["x"].sum(0, keepdim=True)}


def _sums(inputs: Inputs, **fault: Any) -> Results:
    x = inputs["x"]
    y = torch.empty(x.shape[1], dtype=torch.float32, device=x.device)
    options = {"sign": 1.0, "last": 0, "past": 0} | fault
    column_sums[(1,)](x, y, x.shape[0], x.shape[1], options["sign"], options["last"], options["past"], BLOCK=16)
    return {"y": y}


def _storage_sums(inputs: Inputs) -> Results:
    x = inputs["x"]
    y = torch.empty(x.shape[1], dtype=torch.float32, device=x.device)
    column_sums_in_storage_dtype[(1,)](x, y, x.shape[0], x.shape[1], BLOCK=16)
    return {"y": y}


def _tree(inputs: Inputs) -> Results:
    y = torch.empty(1, dtype=torch.float32, device=inputs["x"].device)
    block_sum[(1,)](inputs["x"], y, BLOCK=1024)
    return {"y": y}


_TREE = Candidate(call=_tree, kernels=("block_sum",))


def _overwriting(inputs: Inputs) -> Results:
    results = _sums(inputs)
    inputs["x"][0, 0] += 1.0
    return results


def _warning(inputs: Inputs) -> Results:
    import warnings

    warnings.warn("fast kernel disabled (self-check)", stacklevel=1)
    return _sums(inputs)


def _raising(inputs: Inputs) -> Results:
    raise RuntimeError("no such luck")


def _absent(inputs: Inputs) -> Results:
    raise Missing("unsloth 1.0: no such kernel")


def _asking(inputs: Inputs) -> Results:
    raise AssertionError("Torch not compiled with CUDA enabled")


def _dying(inputs: Inputs) -> Results:
    os.kill(os.getpid(), signal.SIGSEGV)
    return {}
