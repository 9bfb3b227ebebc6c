"""The products of a mixture of experts: row i of X, which lies with expert e, times the weight of that expert.

    y_i = W_e x_i,    dx_i = W_e^T dy_i,    dW_e = sum over the expert's rows of dy_i x_i^T

Rows lie grouped by expert. ``order[i]`` is the place of grouped row i in token order, where a token has ``chosen``
places in a row: with ``permuted="X"`` x_i is read from the token order[i] // chosen (first product of a layer), with
``permuted="Y"`` y_i is written to place order[i] (second product). A token's gradient is the sum of its rows', each
rounded to the storage dtype before.

Source: Unsloth's moe/grouped_gemm (interface.py, reference/moe_ops.py); Gale et al., MegaBlocks (2023). float32 is
left out: on a GPU its products would be TF32. On a CPU the interface's assertions that tensors are on CUDA are left out
and two programs share the tiles; settings are given, not tuned.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor

from kernels_check import interpreter, loading
from kernels_check.case import Candidate, Case, Inputs, Results
from kernels_check.numerics import Bound, rounded_sum

BOTH = ("float16", "bfloat16")
INTERFACE = "moe.grouped_gemm.interface"
FORWARD, BACKWARD, EITHER_DW, OLDER_DW = (
    f"_grouped_gemm_{name}_kernel" for name in ("forward", "dX", "dW(_per_expert)?", "dW")
)
MANY_TILES = "for the processors of a GPU; on a CPU two programs share the tiles of every other case"
Tiles = tuple[int, int, int]
"""Rows, N and K of one tile."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """``rows``: how many rows each expert has; ``shape``: N and K of a weight."""

    name: str
    rows: tuple[int, ...] = (5, 0, 33, 1, 7)
    shape: tuple[int, int] = (48, 64)
    chosen: int = 2
    permuted: Literal["X", "Y", None] = None
    tiles: tuple[Tiles, Tiles, Tiles] = ((16, 32, 32), (16, 16, 32), (16, 32, 64))
    """Of the forward, dX and dW. K must be whole blocks in the first two, and N in the second."""
    tma: bool = False
    """Tiles are moved by the tensor memory accelerator, wherever the permutation allows it."""
    legacy: bool = False
    """The older kernel of dW (UNSLOTH_MOE_DW_KERNEL=legacy)."""
    weighted: bool = False
    """Rows of Y are rounded, then multiplied by a weight of their place; forward only."""
    cpu_reason: str | None = None
    dtypes: tuple[str, ...] = BOTH


def cases() -> list[Case]:
    """Both permutations and none, experts without rows, one row, ends within a block, TMA, more tiles than programs."""
    variants = [
        Variant(name="grouped rows", chosen=1),
        Variant(name="first product", permuted="X"),
        Variant(name="second product", permuted="Y"),
        Variant(name="four experts a token", permuted="X", chosen=4, rows=(3, 40, 0, 0, 9), dtypes=("bfloat16",)),
        Variant(name="one expert has all rows", permuted="Y", rows=(0, 18, 0), dtypes=("bfloat16",)),
        Variant(name="whole blocks", rows=(16, 32), shape=(64, 64), chosen=1, dtypes=("bfloat16",)),
        Variant(name="older dW, first product", permuted="X", legacy=True, dtypes=("bfloat16",)),
        Variant(name="older dW, second product", permuted="Y", legacy=True, dtypes=("bfloat16",)),
        Variant(name="weighted", permuted="Y", weighted=True),
        Variant(name="TMA", chosen=1, tma=True),
        Variant(name="TMA, first product", permuted="X", tma=True, dtypes=("bfloat16",)),
        Variant(name="TMA, second product", permuted="Y", tma=True, dtypes=("bfloat16",)),
        Variant(name="TMA, older dW", chosen=1, tma=True, legacy=True, shape=(64, 64), dtypes=("bfloat16",)),
        Variant(
            name="more tiles than programs", permuted="X", rows=(301, 0, 77, 1, 128, 290, 64, 45), shape=(768, 128),
            tiles=((64, 64, 64), (64, 64, 16), (64, 64, 64)), dtypes=("bfloat16",), cpu_reason=MANY_TILES,
        ),
    ]  # fmt: skip
    return [_case(variant) for variant in variants] + [_accumulated()]


def _case(variant: Variant) -> Case:
    backward = () if variant.weighted else (BACKWARD, OLDER_DW if variant.legacy else EITHER_DW)
    return Case(
        family="moe_grouped_gemm",
        name=variant.name,
        draw=partial(_draw, variant=variant),
        reference=partial(_reference, variant=variant),
        bounds=partial(_bounds, variant=variant),
        candidates={
            "unsloth": Candidate(
                call=partial(_unsloth, variant=variant), kernels=(FORWARD, *backward), cpu_reason=variant.cpu_reason
            )
        },
        gradients=() if variant.weighted else ("X", "W"),
        dtypes=variant.dtypes,
    )


def _draw(generator: torch.Generator, dtype: torch.dtype, *, variant: Variant) -> Inputs:
    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    (n, k), total = variant.shape, sum(variant.rows)
    inputs: Inputs = {
        "X": normal(total // variant.chosen if variant.permuted == "X" else total, k),
        "W": normal(len(variant.rows), n, k),
        "rows": torch.tensor(variant.rows, dtype=torch.int32),
        "order": torch.randperm(total, generator=generator).int(),
    }
    return inputs | ({"weights": normal(total)} if variant.weighted else {"dY": normal(total, n)})


def _grouped(x: Tensor, order: Tensor, variant: Variant) -> Tensor:
    """X's rows grouped by expert."""
    return x[order.long() // variant.chosen] if variant.permuted == "X" else x


def _placed(y: Tensor, order: Tensor, variant: Variant) -> Tensor:
    """Grouped rows of Y in the order that they are written in."""
    return torch.zeros_like(y).index_copy(0, order.long(), y) if variant.permuted == "Y" else y


def _products(x: Tensor, w: Iterable[Tensor], variant: Variant) -> Tensor:
    """The grouped rows of each expert times its weight, transposed."""
    return torch.cat([part @ weight.mT for part, weight in zip(x.split(variant.rows), w, strict=True)])


def _reference(inputs: Inputs, variant: Variant) -> Results:
    y = _products(_grouped(inputs["X"], inputs["order"], variant), inputs["W"], variant)
    y = _placed(y, inputs["order"], variant)
    return {"Y": y * inputs["weights"][:, None] if variant.weighted else y}


def _bounds(inputs: Inputs, results: Results, variant: Variant) -> dict[str, Bound]:
    order, (n, k) = inputs["order"], variant.shape
    x, w = _grouped(inputs["X"].abs(), order, variant), inputs["W"]
    sums = _placed(_products(x, w.abs(), variant), order, variant)
    if variant.weighted:
        weight = inputs["weights"].abs()[:, None]
        return {"Y": Bound(steps=k, magnitude=sums * weight, rounded=results["Y"], spacings=1 + weight)}
    dy = inputs["dY"][order.long()] if variant.permuted == "Y" else inputs["dY"]
    dx_sums = _products(dy.abs(), w.abs().mT, variant)
    dx = Bound(steps=n, magnitude=dx_sums)
    if variant.permuted == "X":
        tokens = (len(results["dX"]), variant.chosen, k)
        rows = torch.empty(len(order), k, dtype=torch.float64).index_copy(0, order.long(), _products(dy, w.mT, variant))
        sizes = torch.empty_like(rows).index_copy(0, order.long(), dx_sums)
        dx = Bound(
            steps=n + variant.chosen,
            magnitude=sizes.view(tokens).sum(1),
            rounded=rounded_sum(rows.view(tokens), 1, results["dX"].numel()),
            spacings=1.0 + variant.chosen,
        )
    return {"Y": Bound(steps=k, magnitude=sums), "dX": dx, "dW": _dw_bound(dy.abs(), x, variant)}


def _dw_bound(dy: Tensor, x: Tensor, variant: Variant) -> Bound:
    parts = zip(dy.split(variant.rows), x.split(variant.rows), strict=True)
    return Bound(steps=max(variant.rows), magnitude=torch.stack([d.mT @ part for d, part in parts]))


@cache
def _interface(device: str) -> Any:
    """Unsloth's interface; on a CPU without its assertions, and with two programs."""
    module = loading.unsloth(INTERFACE)
    if device == "cpu":
        exec(compile(Path(module.__file__).read_text("utf-8"), module.__file__, "exec", optimize=1), module.__dict__)
        module._num_sms = lambda device: 2
        for name in ("forward", "backward"):
            kernels = loading.unsloth(f"moe.grouped_gemm.kernels.{name}")
            kernels.range = interpreter.tensor_range
    return module


def _settings(variant: Variant) -> dict[str, Any]:
    """The kernels' settings, as Unsloth hands them over; with weights of the rows the forward kernel's alone."""
    names = ("KernelConfigForward", "KernelConfigBackward_dX", "KernelConfigBackward_dW")
    kinds = loading.unsloth("moe.grouped_gemm.kernels.tuning", *names)
    x, y, tma = variant.permuted != "X", variant.permuted != "Y", variant.tma
    moved = (
        {"use_tma_load_w": tma, "use_tma_load_x": tma and x, "use_tma_store": tma and y},
        {"use_tma_load_w": tma, "use_tma_load_dy": tma and y, "use_tma_store": tma and x},
        {
            "use_tma_load_x": tma and x,
            "use_tma_load_dy": tma and y,
            "use_tma_store": tma and variant.shape[0] % 32 == 0,
        },
    )
    made = {}
    used = ("fwd",) if variant.weighted else ("fwd", "bwd_dX", "bwd_dW")
    for name, kind, (m, n, k), flags in zip(used, kinds, variant.tiles, moved, strict=False):
        tiles = {"BLOCK_SIZE_M": m, "BLOCK_SIZE_N": n, "BLOCK_SIZE_K": k}
        permuted = {"permute_x": not x, "permute_y": not y}
        made[f"kernel_config_{name}"] = kind(**tiles, **permuted, **flags)
    return made


def _unsloth(inputs: Inputs, variant: Variant) -> Results:
    device = inputs["X"].device.type
    module = _interface(device)
    if variant.tma and not module.supports_tma():
        raise loading.Missing("the tensor memory accelerator needs compute capability 9.0")
    options = {"topk_weights": inputs["weights"], "fuse_mul_post": True} if variant.weighted else {}
    with ExitStack() as stack:
        if variant.legacy:
            loading.unsloth(INTERFACE, "_use_per_expert_dW_kernel")
            stack.enter_context(patch.object(module, "_use_per_expert_dW_kernel", lambda: False))
        y = module.grouped_gemm(
            inputs["X"], inputs["W"], inputs["rows"], variant.chosen, inputs["order"],
            permute_x=variant.permuted == "X", permute_y=variant.permuted == "Y",
            is_first_gemm=variant.permuted != "Y", **options, **_settings(variant),
        )  # fmt: skip
        if variant.weighted:
            return {"Y": y}
        dx, dw = torch.autograd.grad(y, [inputs["X"], inputs["W"]], inputs["dY"])
    return {"Y": y, "dX": dx, "dW": dw}


def _accumulated() -> Case:
    """dW added to an existing gradient G, rounded once."""
    variant = Variant(name="dW added to a gradient", permuted="X")

    def draw(generator: torch.Generator, dtype: torch.dtype) -> Inputs:
        inputs = _draw(generator, dtype, variant=variant)
        return inputs | {"G": inputs.pop("W") * 4, "dY": inputs["dY"]}

    def reference(inputs: Inputs) -> Results:
        x, dy = (t.split(variant.rows) for t in (_grouped(inputs["X"], inputs["order"], variant), inputs["dY"]))
        return {"G": inputs["G"] + torch.stack([d.mT @ part for d, part in zip(dy, x, strict=True)])}

    def bounds(inputs: Inputs, results: Results) -> dict[str, Bound]:
        x = _grouped(inputs["X"].abs(), inputs["order"], variant)
        bound = _dw_bound(inputs["dY"].abs(), x, variant)
        assert bound.magnitude is not None
        return {"G": Bound(steps=bound.steps + 1, magnitude=bound.magnitude + inputs["G"].abs())}

    def call(inputs: Inputs) -> Results:
        _interface(inputs["X"].device.type)
        x, dy, rows, order, g = (inputs[name] for name in ("X", "dY", "rows", "order", "G"))
        m, n, k = variant.tiles[2]
        loading.unsloth(INTERFACE, "grouped_gemm_dW_accumulate")(
            x, dy, rows, order, g, variant.chosen, BLOCK_SIZE_M=m, BLOCK_SIZE_N=n, BLOCK_SIZE_K=k, permute_x=True
        )
        return {"G": g}

    return Case(
        family="moe_grouped_gemm",
        name=variant.name,
        draw=draw,
        reference=reference,
        bounds=bounds,
        candidates={"unsloth": Candidate(call=call, kernels=(EITHER_DW,), overwrites=("G",))},
        dtypes=BOTH,
    )
