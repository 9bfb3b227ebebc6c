"""The timed operations: counts by hand, sizes, and every implementation against float64 or the others on a CPU."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from unittest.mock import patch

import pytest

from kernels_check.case import Inputs, Results
from kernels_check.processes import child_environment
from kernels_check.speed import operations as registry
from kernels_check.speed.operation import BOTH, FORWARD, SHAPES, Operation, Shape, drawn, function, overwritten
from kernels_check.speed.operations import FAMILIES, benchmarks, of_shape, operations

TINY = Shape(
    name="llama-8b", hidden=64, inter=128, heads=2, kv_heads=1, head_dim=32, length=3, vocabulary=301, rank=4
)  # fmt: skip
BY_HAND = Shape(
    name="by-hand", hidden=8, inter=16, heads=2, kv_heads=1, head_dim=4, batch=2, length=3, vocabulary=10, rank=2
)  # fmt: skip
MISSING = [name for name in ("triton", "unsloth", "unsloth_zoo", "liger_kernel") if not importlib.util.find_spec(name)]


def test_shapes_are_those_of_llama() -> None:
    assert [(s.hidden, s.inter, s.heads, s.kv_heads, s.head_dim) for s in SHAPES] == [
        (2048, 8192, 32, 8, 64), (4096, 14336, 32, 8, 128), (8192, 28672, 64, 8, 128),
    ]  # fmt: skip
    assert all(s.heads * s.head_dim == s.hidden and s.rows == 4096 for s in SHAPES)


def test_every_family_is_listed_and_every_benchmark_has_its_own_name() -> None:
    made = operations()
    assert {item.family for item in made} == set(FAMILIES)
    assert [item.family for item in operations(quick=True)] == [
        item.family for item in made if item.shape in ("llama-8b", "vocabulary-32000", "vocabulary-128256")
    ]
    ids = [item.id for item in benchmarks()]
    assert len(set(ids)) == len(ids) > 200
    assert "rms_layernorm-llama-8b-bfloat16-forward+backward-unsloth" in ids
    assert all("-" not in family for family in FAMILIES)  # a name's family ends at its first hyphen
    assert all(item.operation.traffic[item.direction] > 0 for item in benchmarks())


X = 6 * 8 * 2
"""Bytes of 6 rows of 8 numbers of 2 bytes."""


@pytest.mark.parametrize(
    ("family", "forward", "both"),
    [
        ("rms_layernorm", X + 16 + X, (X + 16 + X) + (X + 16 + X + X)),  # X W Y; X W dY dX
        ("add_rms_layernorm", 4 * X + 16, None),  # X residual h Y, W
        ("layernorm", X + 16 + 16 + X, (X + 16 + 16 + X) + (X + 16 + X + X)),
        # 6 rows of 12 numbers of queries and keys in and out; 3 positions of 2 cosines and 2 sines
        ("rope", 2 * 144 + 24, 4 * 144 + 48),
        ("swiglu", 3 * 192, 8 * 192),  # e g h; dh e g de dg
        ("linear_cross_entropy", X + 160 + 48 + 4, X + 160 + 48 + 4 + X + 4),  # X head labels loss; dX dloss
        # o: 8 x 8, rank 2: base 128 bytes, update 2 (2 x 8) 2 = 64 bytes
        ("lora_o", X + 128 + 64 + X, (X + 128 + 64 + X) + (X + X + 128 + 64 + X + 64)),
        # q 8 to 8, k and v 8 to 4: base 256 bytes, update 2 (16 + 12 + 12) 2 = 160, outputs 6 x 16 x 2 = 192
        ("lora_qkv", X + 256 + 160 + 192, (X + 256 + 160 + 192) + (192 + X + 256 + 160 + X + 160)),
        # 64 weights: 32 bytes, one scale of a byte, one of 4; W of 128 weights twice as much: 64 + 2 + 4
        ("lora_o_nf4", X + 37 + 64 + X, (X + 37 + 64 + X) + (X + X + 37 + 64 + X + 64)),
        ("nf4_dequantise", 70 + 256, None),
        ("nf4_gemv", 70 + 2 * (8 + 16), None),
    ],
)
def test_bytes_by_hand(family: str, forward: int, both: int | None) -> None:
    traffic = next(item for item in of_shape(BY_HAND) if item.family == family).traffic
    assert traffic == ({FORWARD: forward} if both is None else {FORWARD: forward, BOTH: both})


def test_flops_by_hand() -> None:
    flops = {item.family: dict(item.flops) for item in of_shape(BY_HAND)}
    assert flops["rms_layernorm"] == {FORWARD: 0, BOTH: 0}
    assert flops["linear_cross_entropy"] == {FORWARD: 2 * 4 * 10 * 8, BOTH: 2 * 2 * 4 * 10 * 8}  # 4 labelled tokens
    base, update = 2 * 6 * 8 * 8, 2 * 6 * (8 * 2 + 2 * 8)
    assert flops["lora_o"] == {FORWARD: base + update, BOTH: 2 * base + 3 * update}
    base, update = 3 * 2 * 6 * 8 * 16, 3 * 2 * 6 * (8 * 2 + 2 * 16)
    assert flops["lora_mlp"] == flops["lora_mlp_nf4"] == {FORWARD: base + update, BOTH: 2 * base + 3 * update}
    assert flops["nf4_gemv"] == {FORWARD: 2 * 8 * 16}


def test_cross_entropy_by_hand() -> None:
    eight = next(shape for shape in SHAPES if shape.name == "llama-8b")
    made = [item for item in of_shape(eight) if item.family == "cross_entropy"]
    assert [item.shape for item in made] == ["vocabulary-32000", "vocabulary-128256"]
    logits = 4096 * 32000 * 2
    assert made[0].traffic == {FORWARD: logits + 32768 + 4, BOTH: 2 * logits + 32768 + 8}


def _tiny() -> list[Operation]:
    with patch.object(registry, "VOCABULARIES", (97, 65541)):
        return of_shape(TINY)


@pytest.mark.parametrize("family", ["rms_layernorm", "rope", "swiglu", "cross_entropy", "linear_cross_entropy"])
def test_eager_is_the_families_own_reference(family: str) -> None:
    """Against ``kernels check``'s float64 references. A chain of bfloat16 roundings is within 2 %, another formula is
    not."""
    import torch

    from kernels_check.families import linear_cross_entropy, rms_layernorm, rope
    from kernels_check.speed import losses

    operation = next(item for item in _tiny() if item.family == family)
    inputs = drawn(operation, FORWARD, "cpu")
    exact = {n: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v for n, v in inputs.items()}
    references: dict[str, Callable[[Inputs], Results]] = {
        "rms_layernorm": partial(rms_layernorm._reference, gemma=False),
        "rope": rope._reference,
        "swiglu": lambda i: {"h": i["e"] * torch.sigmoid(i["e"]) * i["g"]},
        "cross_entropy": losses._eager,
        "linear_cross_entropy": partial(
            linear_cross_entropy._reference, variant=linear_cross_entropy.Variant(name="", vocabulary=TINY.vocabulary)
        ),
    }
    if family == "cross_entropy":  # its own formula once more, on logits that give the loss away: log n
        inputs["X"] = exact["X"] = torch.zeros_like(inputs["X"])
        references[family] = lambda i: {"loss": torch.tensor(97.0, dtype=torch.float64).log()}
    if family == "linear_cross_entropy":
        exact["b"] = None
    got = function(operation, FORWARD, operation.candidates["eager"])(inputs)
    for name, value in references[family](exact).items():
        assert (got[name].double() - value).norm() <= 0.02 * value.norm(), name


def test_eager_is_one_graph_for_all_sets_of_inputs() -> None:
    """torch.compile takes each eager function whole, and does not compile again for another set."""
    import torch
    from torch._dynamo.utils import counters

    real = torch.compile
    with patch.object(torch, "compile", partial(real, backend="eager")):
        for operation in _tiny():
            for direction in operation.directions if "compile" in operation.candidates else ():
                compiled = function(operation, direction, operation.candidates["compile"])
                for _ in range(2):
                    assert compiled(drawn(operation, direction, "cpu"))
                assert counters["stats"]["unique_graphs"] == 1, operation.family


def _results() -> Iterator[dict[str, object]]:
    """In a process with Triton's interpreter: every implementation but torch.compile beside eager."""
    from kernels_check import child

    child.prepare("cpu")
    import torch

    from kernels_check.families.linear_cross_entropy import _fused_module
    from kernels_check.speed.observe import NotTimed, distances

    fused = _fused_module(on_cpu=True)
    with patch.object(fused, "_use_triton", lambda device: True):
        for operation in _tiny():
            eager = operation.candidates["eager"]
            for direction in operation.directions:
                for name, implementation in operation.candidates.items():
                    inputs = drawn(operation, direction, "cpu")
                    before = {n: v.detach().clone() for n, v in inputs.items() if isinstance(v, torch.Tensor)}
                    timed, plain = (function(operation, direction, one) for one in (implementation, eager))
                    line: dict[str, object] = {}
                    try:
                        line["distance"] = max(distances(operation, direction, name, timed, plain, inputs).values())
                    except NotTimed as reason:
                        line["reason"] = str(reason)
                    changed = {n for n, v in before.items() if not torch.equal(v, inputs[n])}
                    yield line | {
                        "what": f"{operation.family} {operation.shape} {direction} {name}",
                        "changed beyond": sorted(changed - set(overwritten(implementation, direction))),
                    }


@pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
def test_every_implementation_agrees_with_eager_and_launches_its_kernel() -> None:
    code = "import json, tests.kernels_check.test_speed_operations as t; print(json.dumps(list(t._results())))"
    ran = subprocess.run([sys.executable, "-c", code], env=child_environment(), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    lines = json.loads(ran.stdout.splitlines()[-1])
    compiled = [line for line in lines if line["what"].endswith("compile")]
    assert compiled and all(
        "made no graph" in line["reason"] for line in compiled
    )  # the interpreter's process has none
    others = [line for line in lines if line not in compiled]
    assert len(others) > 70
    assert not [line for line in others if "reason" in line or line["changed beyond"]]
