"""Which Triton kernels were launched: what ran is observed, not assumed."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def watched() -> Iterator[Counter[str]]:
    """Counts launches by kernel name while it lasts, in the interpreter and on a GPU alike.

    On a GPU the compiled kernel itself is watched, not Triton's launch hooks: Unsloth launches compiled kernels
    directly and leaves that path where a hook is set. Kernels that PyTorch's Inductor generates have a launcher of
    their own: it is watched where ``torch._inductor.runtime.triton_heuristics`` has been imported before.
    """
    from triton.compiler.compiler import CompiledKernel
    from triton.runtime.interpreter import InterpretedFunction

    counts: Counter[str] = Counter()
    interpreted, compiled = InterpretedFunction.run, CompiledKernel.run

    def run_interpreted(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = interpreted(self, *args, **kwargs)
        counts[self.fn.__name__] += 1
        return out

    def run_compiled(self: Any) -> Any:
        launch = compiled.fget(self)

        def counted(*args: Any, **kwargs: Any) -> Any:
            out = launch(*args, **kwargs)
            counts[self.metadata.name] += 1
            return out

        return counted

    InterpretedFunction.run, CompiledKernel.run = run_interpreted, property(run_compiled)
    try:
        with _inductor_watched(counts):
            yield counts
    finally:
        InterpretedFunction.run, CompiledKernel.run = interpreted, compiled


@contextmanager
def _inductor_watched(counts: Counter[str]) -> Iterator[None]:
    heuristics = sys.modules.get("torch._inductor.runtime.triton_heuristics")
    if heuristics is None:
        yield
        return
    generated = heuristics.CachingAutotuner.run

    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = generated(self, *args, **kwargs)
        counts[self.fn.__name__] += 1
        return out

    heuristics.CachingAutotuner.run = run
    try:
        yield
    finally:
        heuristics.CachingAutotuner.run = generated
