"""Makes Triton's interpreter right on CPU tensors, so that it can judge a kernel's arithmetic and indexing.

``mend()`` is called once in a fresh process, before any kernel module is imported (modules bind ``tl.cast`` and
libdevice functions when imported). Every mend has its reason beside it. Written for the interpreter of Triton 3.9; what
the interpreter cannot stand for is listed in ``NOT_COVERED`` and goes into the record.
"""

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np

from kernels_check.small_floats import from_e4m3, to_bfloat16, to_e4m3, to_float32

LOWEST_TRITON = (3, 9)
NUMPY_FOR_LIBDEVICE: dict[str, Callable[..., Any]] = {
    "tanh": np.tanh,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sqrt": np.sqrt,
    "exp": np.exp,
    "log1p": np.log1p,
    "expm1": np.expm1,
    "fast_expf": np.exp,
    "div_rn": np.divide,
    "mul_rn": np.multiply,
    "rint": np.rint,
}
"""libdevice functions have no implementation in the interpreter; these stand in, computed in the argument's type."""
NOT_COVERED = (
    f"libdevice ({', '.join(NUMPY_FOR_LIBDEVICE)}): NumPy's functions stand in",
    "code generation, fused multiply-add contraction, tensor-core precision, data races and speed",
    "launch settings (warps, stages, registers) and the faster launch path of CUDA",
)


def prepare_environment() -> None:
    """Set what Triton and Unsloth read when imported. Call before importing either."""
    os.environ.update(
        TRITON_INTERPRET="1",  # kernels become interpreted functions
        UNSLOTH_ALLOW_CPU="1",  # Unsloth reports "cuda", so that its CUDA branches are taken
        UNSLOTH_COMPILE_DISABLE="1",
        TORCHDYNAMO_DISABLE="1",  # torch.compile would only take time here
    )


def mend() -> None:
    """Apply every mend to this process."""
    import triton
    from triton.runtime import interpreter

    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if version < LOWEST_TRITON:
        raise RuntimeError(f"the interpreter of Triton {triton.__version__} is too old: 3.9 or newer is needed")
    _mend_sixteen_bit(interpreter)
    _mend_arguments(interpreter)
    _mend_builtins(interpreter)
    _mend_loops(interpreter)
    _mend_device_calls(interpreter)
    _answer_device_queries()


def _mend_sixteen_bit(interpreter: Any) -> None:
    """bfloat16 is stored as uint16 and the interpreter computes on those integers and truncates: compute in float32
    and round to nearest even, as the hardware does. Sums of 16-bit floats are rounded at every step of a tree, as
    compiled code does; NumPy would keep a wider accumulator and hide a kernel that accumulates in 16 bits."""
    import triton.language as tl

    builder, handle_of = interpreter.InterpreterBuilder, interpreter.TensorHandle
    binary, unary, ternary_fma = builder.binary_op, builder.unary_op, builder.create_fma
    cast, fp_to_fp, dot = builder.cast_impl, builder.create_fp_to_fp, builder.create_dot

    def is_bf16(handle: Any) -> bool:
        return not isinstance(handle.dtype, tl.pointer_type) and handle.dtype.scalar == tl.bfloat16

    def is_e4m3(handle: Any) -> bool:
        return not isinstance(handle.dtype, tl.pointer_type) and handle.dtype.scalar == tl.float8e4nv

    def widened(handle: Any) -> Any:
        if is_e4m3(handle):
            return handle_of(from_e4m3(handle.data), tl.float32)
        return handle_of(to_float32(handle.data), tl.float32) if is_bf16(handle) else handle

    def narrowed(data: np.ndarray) -> Any:
        return handle_of(data if data.dtype == np.bool_ else to_bfloat16(data), tl.bfloat16)

    def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        if not is_bf16(lhs) or op in (np.bitwise_and, np.bitwise_or, np.bitwise_xor):
            return binary(self, lhs, rhs, op)
        return narrowed(op(widened(lhs).data, widened(rhs).data))

    def unary_op(self: Any, arg: Any, op: Any) -> Any:
        return narrowed(op(widened(arg).data)) if is_bf16(arg) else unary(self, arg, op)

    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        if not is_bf16(z):
            return ternary_fma(self, x, y, z)
        product = widened(x).data.astype(np.float64) * widened(y).data
        return narrowed((product + widened(z).data).astype(np.float32))

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        if dst_type.scalar == tl.bfloat16:
            return src if is_bf16(src) else narrowed(src.data.astype(np.float32))
        return cast(self, widened(src), dst_type)

    def create_fp_to_fp(self: Any, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
        if is_e4m3(src):
            src = widened(src)
            if dst_type.scalar == tl.float32:
                return src
        if dst_type.scalar == tl.float8e4nv:
            return handle_of(to_e4m3(widened(src).data), tl.float8e4nv)
        if dst_type.scalar == tl.bfloat16 or is_bf16(src):
            return cast_impl(self, src, dst_type)
        return fp_to_fp(self, src, dst_type, rounding_mode)

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        return dot(self, widened(a), widened(b), d, *rest)

    builder.binary_op, builder.unary_op, builder.create_fma = binary_op, unary_op, create_fma
    builder.cast_impl, builder.create_fp_to_fp, builder.create_dot = cast_impl, create_fp_to_fp, create_dot
    _mend_reductions(interpreter, is_bf16)


def _mend_reductions(interpreter: Any, is_bf16: Callable[[Any], bool]) -> None:
    import triton.language as tl

    reduce = interpreter.ReduceOps
    total, extreme = reduce.sum, reduce.min_max

    def tree_sum(data: np.ndarray, axis: int, rounded: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        data = np.moveaxis(data, axis, 0)
        while len(data) > 1:
            half, odd = len(data) // 2, data[len(data) // 2 * 2 :]
            data = np.concatenate([rounded(data[:half] + data[half : 2 * half]), odd])
        return data[0]

    def sum_(self: Any, input: Any) -> Any:
        if input.dtype.scalar not in (tl.bfloat16, tl.float16) or self.axis is None:
            return total(self, input)
        data, axis = input.handle.data, self.axis
        if is_bf16(input.handle):
            out = to_bfloat16(tree_sum(to_float32(data), axis, lambda x: to_float32(to_bfloat16(x))))
        else:
            out = tree_sum(data, axis, lambda x: x)
        return self.to_tensor(np.expand_dims(out, axis) if self.keep_dims else out, input.dtype)

    def min_max(self: Any, input: Any, val_reduce_op: Any, idx_reduce_op: Any = None) -> Any:
        first = input[0] if isinstance(input, tuple) else input
        if is_bf16(first.handle):
            raise NotImplementedError("minimum or maximum of bfloat16 in the interpreter: Triton widens it before")
        return extreme(self, input, val_reduce_op, idx_reduce_op)

    reduce.sum, reduce.min_max = sum_, min_max


def _mend_arguments(interpreter: Any) -> None:
    """A runtime float argument arrives as a Python float; compiled code gets a float32 scalar."""
    import triton.language as tl

    convert = interpreter._implicit_cvt

    def implicit_cvt(arg: Any) -> Any:
        if isinstance(arg, float):
            return tl.tensor(interpreter.TensorHandle(np.array([arg], dtype=np.float32), tl.float32), tl.float32)
        return convert(arg)

    interpreter._implicit_cvt = implicit_cvt


def _mend_builtins(interpreter: Any) -> None:
    """``tl.cast`` bound under another name escapes the interpreter's patching of ``triton.language``; libdevice
    functions are stubs that return nothing."""
    import triton.language as tl
    from triton.language.extra import libdevice
    from triton.language.extra.cuda import libdevice as cuda_libdevice

    cast = tl.cast

    def cast_anywhere(*args: Any, _semantic: Any = None, **kwargs: Any) -> Any:
        return cast(*args, _semantic=_semantic or interpreter.interpreter_semantic, **kwargs)

    setattr(cast_anywhere, tl.core.TRITON_BUILTIN, True)
    tl.cast = tl.core.cast = cast_anywhere

    def stand_in(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Any, *others: Any) -> Any:
            tensors = [interpreter.interpreter_semantic.to_tensor(arg) for arg in (first, *others)]
            data = function(*(t.handle.data for t in tensors)).astype(tensors[0].handle.data.dtype)
            return tl.tensor(interpreter.TensorHandle(data, tensors[0].dtype), tensors[0].type)

        return call

    for name, function in NUMPY_FOR_LIBDEVICE.items():
        for module in (libdevice, cuda_libdevice):
            setattr(module, name, stand_in(function))


def tensor_range(first: Any, last: Any = None, step: Any = 1, **pipelining: Any) -> Iterator[Any]:
    """``range`` whose numbers are tensors, as a loop's variable is in compiled code; in the interpreter it is a Python
    number, which has no ``.to(dtype)``."""
    from triton.runtime import interpreter

    start, end = (0, first) if last is None else (first, last)
    for number in range(int(start), int(end), int(step)):
        yield interpreter._implicit_cvt(number)


def _mend_loops(interpreter: Any) -> None:
    """``tl.range`` yields tensors. Python's own ``range`` in a kernel is the kernel's module's affair: a family may set
    it to ``tensor_range`` there."""
    patch_core = interpreter._patch_lang_core

    def patched(lang: Any, scope: Any) -> None:
        patch_core(lang, scope)
        scope.set_attr(lang, "range", tensor_range)

    interpreter._patch_lang_core = patched


def _mend_device_calls(interpreter: Any) -> None:
    """For speed alone. Every call of a device function patches ``triton.language`` anew: once a launch and module is
    enough. Every operation builds a table of dtypes anew: kept. Every integer operation checks for overflow in 64 bits,
    which compiled kernels do not by default: off."""
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
    import triton.language as tl

    numpy_dtype = interpreter._get_np_dtype
    kept = cache(numpy_dtype)
    interpreter._get_np_dtype = lambda dtype: kept(dtype) if type(dtype) is tl.dtype else numpy_dtype(dtype)
    patch_language = interpreter._patch_lang
    patched: set[str] = set()

    def patch_for_launch(fn: Any) -> Any:
        patched.clear()
        patched.add(fn.__module__)
        return patch_language(fn)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.fn.__module__ not in patched:
            patch_language(self.fn)
            patched.add(self.fn.__module__)
        return self.rewrite()(*args, **kwargs)

    interpreter._patch_lang, interpreter.InterpretedFunction.__call__ = patch_for_launch, call


def _answer_device_queries() -> None:
    """Launch helpers ask which GPU is current before they look at the tensor's device; older releases of Unsloth ask
    for every GPU's stream and capability when imported."""
    import torch

    class Device(nullcontext):
        """The context of ``torch.cuda.device(tensor.device)``, which the NF4 kernels enter for a CPU tensor's."""

        idx = 0

    torch.cuda.device = Device
    torch.cuda.default_stream = lambda *device: SimpleNamespace(cuda_stream=0)
    torch.cuda.current_stream = lambda *device: SimpleNamespace(cuda_stream=0, synchronize=lambda: None)
    torch.cuda.is_current_stream_capturing = lambda: False
    torch.cuda.current_device = lambda: 0
    torch.cuda.is_available = lambda: False  # CUDA builds of torch would take the next line for a driver
    torch.cuda.device_count = lambda: 1
    torch.cuda.get_device_capability = lambda *device: (9, 0)
    torch._C._cuda_getCurrentRawStream = lambda index: 0


def import_device_types() -> None:
    """Releases older than UNSLOTH_ALLOW_CPU ask torch for a GPU when their ``device_type`` is imported, and raise where
    there is none: they are told that there is one, for that import alone. Call with the packages registered bare."""
    import torch

    for name in ("unsloth_zoo.device_type", "unsloth.device_type"):
        try:
            importlib.import_module(name)
        except NotImplementedError:
            with patch.object(torch.cuda, "is_available", lambda: True):
                importlib.import_module(name)
        except ImportError:
            pass  # still older ones have no such module; loading answers for it
