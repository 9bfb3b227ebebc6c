"""Which Triton kernels were launched: what ran is observed, not assumed."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def watched() -> Iterator[Counter[str]]:
    """Counts launches by kernel name while it lasts, in the interpreter and on a GPU alike.

    On a GPU the compiled kernel itself is watched, not Triton's launch hooks: Unsloth launches compiled kernels
    directly and leaves that path where a hook is set.
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
        yield counts
    finally:
        InterpretedFunction.run, CompiledKernel.run = interpreted, compiled
