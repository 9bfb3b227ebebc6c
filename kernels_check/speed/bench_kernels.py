"""The benchmarks, run by ``run`` in a process of its own on a machine with a GPU (see ``operation`` and ``timing``)."""

import gc
import time

import pytest

from kernels_check import loading
from kernels_check.case import Inputs
from kernels_check.speed.conftest import NOT_TIMED, STARTED, TIMER, NotTimedEntry
from kernels_check.speed.observe import NotTimed, distances
from kernels_check.speed.operation import DTYPE, SEED, Implementation, drawn, function, overwritten, size_bytes
from kernels_check.speed.operations import Benchmark
from kernels_check.speed.timing import ROUNDS, WARM_UP, Rotation, copies_needed

BUFFER_BYTES = 4 * 2**30
SIDE = 8192


@pytest.mark.parametrize(
    "ceiling",
    [
        pytest.param(name, marks=pytest.mark.benchmark(group=f"ceiling {name}", timer=TIMER.cuda_events))
        for name in ("copy", "read", "matmul")
    ],
)
def test_ceiling(ceiling: str, request: pytest.FixtureRequest) -> None:
    """What this GPU reaches: 4 GiB copied (read and written), 4 GiB summed (read), a bfloat16 product of 8192 x 8192
    matrices."""
    import torch

    made = torch.Generator("cuda").manual_seed(SEED)
    extra: dict[str, str | int]
    if ceiling == "matmul":
        a, b = (torch.randn((SIDE, SIDE), device="cuda", dtype=torch.bfloat16, generator=made) for _ in range(2))
        product = torch.empty_like(a)
        extra = {"ceiling": "matmul", "flops": 2 * SIDE**3}

        def run() -> None:
            torch.matmul(a, b, out=product)
    else:
        source = torch.randn(BUFFER_BYTES // 4, device="cuda", generator=made)
        target = torch.empty_like(source)
        extra = {"ceiling": "bandwidth", "bytes": BUFFER_BYTES if ceiling == "read" else 2 * BUFFER_BYTES}

        def run() -> None:
            if ceiling == "read":
                source.sum()
            else:
                target.copy_(source)

    benchmark = request.getfixturevalue("benchmark")
    benchmark.extra_info |= extra
    TIMER.begin()
    benchmark.pedantic(run, setup=TIMER.prepare, rounds=ROUNDS, iterations=1, warmup_rounds=WARM_UP)
    benchmark.extra_info["cpu_bound_rounds"] = TIMER.cpu_bound_share


def test_kernel(kernel: Benchmark, request: pytest.FixtureRequest) -> None:
    """One operation, direction and candidate: checked, then timed. What cannot be timed is noted with the reason."""
    import torch

    stash, limit_s = request.config.stash, request.config.getoption("--limit-s")
    reason = None
    if time.monotonic() - stash[STARTED] > limit_s:
        reason = f"the run's limit of {limit_s:g} s was reached before"
    else:
        try:
            torch.cuda.synchronize()  # an earlier kernel's illegal access shows here
            _timed(kernel, request)
        except (NotTimed, loading.Missing) as error:
            reason = str(error)
        except Exception as error:  # whatever a candidate raises is its own; the others are timed
            lines = str(error).strip().splitlines() or [""]
            reason = f"{type(error).__name__}: {lines[0]}"
    if reason is not None:
        entry = NotTimedEntry(
            family=kernel.operation.family, shape=kernel.operation.shape, direction=kernel.direction,
            candidate=kernel.candidate, reason=reason,
        )  # fmt: skip
        stash[NOT_TIMED].append(entry)
    gc.collect()
    if reason is not None:
        pytest.skip(reason)


def _timed(kernel: Benchmark, request: pytest.FixtureRequest) -> None:
    import torch

    operation, direction = kernel.operation, kernel.direction
    implementation: Implementation = operation.candidates[kernel.candidate]
    timed = function(operation, direction, implementation)
    first = drawn(operation, direction, "cuda")
    l2_bytes = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    copies = copies_needed(size_bytes(first), l2_bytes)
    sets = [first, *(drawn(operation, direction, "cuda") for _ in range(copies - 1))]
    rotation = Rotation(sets, overwritten(implementation, direction))
    eager = function(operation, direction, operation.candidates["eager"])
    apart = distances(operation, direction, kernel.candidate, timed, eager, rotation.next())
    for _ in range(copies):  # what a call prepares for each set (guards, plans) is prepared
        timed(rotation.next())
    torch.cuda.synchronize()

    def setup() -> tuple[tuple[Inputs], dict[str, object]]:
        inputs = rotation.next()
        TIMER.prepare()
        return (inputs,), {}

    def run(inputs: Inputs) -> None:
        timed(inputs)

    benchmark = request.getfixturevalue("benchmark")
    benchmark.extra_info |= {
        "family": operation.family, "shape": operation.shape, "dims": dict(operation.dims), "dtype": DTYPE,
        "direction": direction, "candidate": kernel.candidate, "bytes": operation.traffic[direction],
        "flops": operation.flops[direction], "copies": copies, "distance_from_eager": max(apart.values()),
    }  # fmt: skip
    TIMER.begin()
    benchmark.pedantic(run, setup=setup, rounds=ROUNDS, iterations=1, warmup_rounds=WARM_UP)
    benchmark.extra_info["cpu_bound_rounds"] = TIMER.cpu_bound_share
