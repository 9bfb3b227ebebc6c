"""The families that a GPU's kernels are for: references against other ways to compute them, tolerances against the
errors that they stand for, and the kernels themselves where the interpreter can run them."""

import importlib
import importlib.util
import sys
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kernels_check import child, execute, launches, small_floats
from kernels_check.check import check
from kernels_check.families import (
    FAMILIES,
    GPU_FIRST,
    GPU_PARTS,
    NO_CASE,
    flex_attention,
    fp8,
    fp8_reference,
    moe_grouped_gemm,
    nvfp4_products,
)
from kernels_check.families.simulated import Rounding
from kernels_check.mutate import mutate
from kernels_check.numerics import compare, tolerance
from kernels_check.poison import Memory, poisoned

MISSING = [name for name in ("triton", "unsloth", "unsloth_zoo") if not importlib.util.find_spec(name)]
installed = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


def cases_of(module: Any) -> dict[str, Any]:
    return {case.name: case for case in module.cases()}


def expected(module: Any, name: str, dtype: str = "bfloat16") -> execute.Expected:
    return execute.expect(cases_of(module)[name], dtype, 3)


@pytest.mark.parametrize(("name", "window"), [("causal", 140), ("window", 50)])
def test_flex_attention_reference_is_attention_with_one_more_key(name: str, window: int) -> None:
    found = expected(flex_attention, name)
    q, k, v = (found.inputs[letter] for letter in "QKV")
    k, v = (torch.cat([torch.zeros_like(t[:, :, :1]), t], 2).repeat_interleave(2, 1) for t in (k, v))
    mask = torch.full((2, 140, 141), -torch.inf, dtype=torch.float64)
    mask[:, :, 0] = found.inputs["S"][:, None]  # the key of zeros scores 0, so that its bias is the sink
    for row in range(140):
        mask[:, row, 1 + max(0, row - window + 1) : 2 + row] = 0
    o = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)
    assert torch.allclose(o, found.results["O"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", cases_of(flex_attention))
def test_flex_attention_bounds_follow_the_gradients_of_the_reference(name: str) -> None:
    case = cases_of(flex_attention)[name]
    found = execute.expect(case, case.dtypes[0], 0)
    exact = flex_attention._algorithm(found.inputs, case.reference.keywords["variant"], Rounding(None))
    assert set(exact) == set(found.results) == {"O", "dQ", "dK", "dV", "dS"}
    for result, value in found.results.items():
        assert torch.allclose(exact[result], value, rtol=0, atol=1e-12), result


@pytest.mark.parametrize("name", ["grouped rows", "first product", "second product", "four experts a token"])
def test_grouped_products_row_by_row(name: str) -> None:
    found = expected(moe_grouped_gemm, name)
    variant = cases_of(moe_grouped_gemm)[name].reference.keywords["variant"]
    inputs, results = found.inputs, found.results
    dx, dw = torch.zeros_like(inputs["X"]), torch.zeros_like(inputs["W"])
    expert = [e for e, rows in enumerate(variant.rows) for _ in range(rows)]
    for row, place in enumerate(inputs["order"].tolist()):
        read = place // variant.chosen if variant.permuted == "X" else row
        written = place if variant.permuted == "Y" else row
        weight, x, dy = inputs["W"][expert[row]], inputs["X"][read], inputs["dY"][written]
        assert torch.allclose(results["Y"][written], weight @ x)
        dx[read] += dy @ weight
        dw[expert[row]] += torch.outer(dy, x)
    assert torch.allclose(results["dX"], dx)
    assert torch.allclose(results["dW"], dw)
    assert 0 in variant.rows and not results["dW"][variant.rows.index(0)].any()


def test_eight_bit_floats_of_the_interpreter_are_pytorchs() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    values = codes.view(torch.float8_e4m3fn).float()
    assert np.array_equal(small_floats.from_e4m3(codes.numpy()), values.numpy(), equal_nan=True)
    assert np.array_equal(small_floats.to_e4m3(values.numpy()), codes.numpy())
    ties = np.array([17, 19, 500, -1e9], dtype=np.float32)  # and what is too large
    assert small_floats.from_e4m3(small_floats.to_e4m3(ties)).tolist() == [16, 20, 448, -448]


def test_no_drawn_activation_lies_near_a_tie() -> None:
    found = expected(fp8, "few rows")
    x = found.inputs["X"].view(3, 3, 128)
    assert not x[1, 0].any() and x[0, 0].any()  # one block of zeros
    quotient = x / fp8_reference.scale(x.flatten(1), 128)[..., None]
    assert torch.equal(fp8_reference.e4m3(quotient * (1 + 1e-5)), fp8_reference.e4m3(quotient * (1 - 1e-5)))
    assert (x == 0).sum() < 0.2 * x.numel()


def truncated_sum(products: Tensor) -> Tensor:
    """The sum over the last dimension as Hopper's tensor cores are said to take it, 32 products at a time."""
    total = torch.zeros(products.shape[:-1], dtype=torch.float64)
    for part in products.split(32, -1):
        terms = torch.cat([part, total[..., None]], -1)
        largest = terms.abs().amax(-1, keepdim=True).clamp(min=1e-300)
        unit = 2.0 ** (largest.log2().floor() - 13)
        total = ((terms / unit).trunc() * unit).sum(-1)
    return total


def test_the_tolerance_of_eight_bit_products_covers_hoppers_sums_and_little_more() -> None:
    name = "block product, full blocks"
    found = expected(fp8, name, "float16")
    q, v = (fp8_reference.e4m3(found.inputs[letter]) for letter in ("codes", "values"))
    y = torch.zeros_like(found.results["Y"])
    for block, start in enumerate(range(0, 264, 128)):
        products = q[:, None, start : start + 128] * v[None, :, start : start + 128]
        scales = found.inputs["scales"][:, block].repeat_interleave(128)[:136]
        y += truncated_sum(products) * found.inputs["a"][:, block, None] * scales
    assert (y - found.results["Y"]).abs().max() > 0
    bound = found.bounds["Y"]
    assert 0 < compare(y.half(), found.results["Y"], bound, torch.float16).error <= 1
    assert tolerance(found.results["Y"], bound, torch.float16).median() < 0.02 * found.results["Y"].abs().median()


def test_a_split_product_case_has_the_gradient_of_its_weight() -> None:
    found = expected(nvfp4_products, "few rows")
    identity = found.inputs | {"X": torch.eye(96, dtype=torch.float64), "dY": torch.eye(50, dtype=torch.float64)}
    results = nvfp4_products._reference(identity)
    assert torch.equal(results["Y"].mT, results["dX"]) and results["dX"].shape == (50, 96)


def test_on_a_gpu_every_case_runs_in_one_process() -> None:
    assert {*GPU_PARTS, *GPU_FIRST} <= set(FAMILIES)
    for family in FAMILIES:
        cases = importlib.import_module(f"kernels_check.families.{family}").cases()
        parts = [cases[part :: child.parts(family, "cuda")] for part in range(child.parts(family, "cuda"))]
        assert all(parts), family
        assert Counter(case.name for part in parts for case in part) == Counter(case.name for case in cases)
        assert child.parts(family, "cpu") == 1


def test_launches_of_inductors_kernels_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    class CachingAutotuner:
        fn = SimpleNamespace(__name__="triton_tem_fused_0")

        def run(self, *args: int, stream: int) -> int:
            return sum(args) + stream

    heuristics = SimpleNamespace(CachingAutotuner=CachingAutotuner)
    monkeypatch.setitem(sys.modules, "torch._inductor.runtime.triton_heuristics", heuristics)
    counts: Counter[str] = Counter()
    with launches._inductor_watched(counts):
        assert CachingAutotuner().run(1, 2, stream=3) == 6
    CachingAutotuner().run(1, stream=0)
    assert counts == {"triton_tem_fused_0": 1}


def test_the_compilers_tensors_without_memory_are_not_poisoned() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    memory = Memory()
    with poisoned(memory), FakeTensorMode():
        made = torch.empty(3)
    assert made.shape == (3,) and not memory.damage() and not memory._flats
    with poisoned(memory):
        assert torch.empty(3).isnan().all()


@installed
def test_the_kernels_pass_or_say_why_they_do_not_run() -> None:
    record = check("cpu", only=["fp8", "nvfp4_products", "flex_attention"])
    other = {f"{e.family}/{e.case}": e.reason for e in record.entries if e.status != "passed"}
    assert other == {f"flex_attention/{name}": flex_attention.CPU_REASON for name in cases_of(flex_attention)}
    assert {e.status for e in record.entries} == {"passed", "not runnable here"}
    ran = {name for e in record.entries for name in e.launched}
    assert {"act_quant_kernel", "_fp8_rowwise_gemv_rows_reduce", "_split_sum_kernel"} <= ran
    assert not {"fp8 matrix products", "nvfp4 matrix products", "moe_grouped_gemm", "flex_attention"} & set(NO_CASE)


@installed
def test_a_fault_in_a_kernel_that_lies_in_a_package_is_killed() -> None:
    record = mutate(names=["experts older dW: gradient not permuted"])
    (outcome,) = record.outcomes
    assert outcome.status == "killed"
    bad = outcome.verdicts[0].bad
    assert bad is not None and bad.case == "older dW, second product" and (bad.reason or "").startswith("dW: ")
