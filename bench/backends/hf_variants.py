"""hf-peft with one thing changed, and with several: the rungs between the documented recipe and Unsloth.

Each change is a class over ``HfPeft`` that passes on to the next, so that a combination is a class with several bases.
Sources: TRL's and transformers' documentation of ``use_liger_kernel`` and ``torch_compile``; PEFT's source of
``prepare_model_for_kbit_training``.
"""

from typing import Any

from bench import training
from bench.backends.hf_peft import QUANTISED, HfPeft, checkpointing
from bench.cell import Cell
from bench.environment import Environment


class NoUpcast(HfPeft):
    """Norms, embeddings and head stay in the compute dtype, where PEFT's preparation casts them to float32."""

    def unsupported(self, cell: Cell, machine: Environment) -> str | None:
        """See ``Backend``."""
        if cell.precision not in QUANTISED:
            return f"PEFT casts nothing to float32 in {cell.precision}: this would be hf-peft again"
        return super().unsupported(cell, machine)

    def prepare(self, cell: Cell, model: Any) -> Any:
        """All that PEFT's preparation does with non-reentrant checkpointing, but the cast."""
        model.requires_grad_(False)
        if checkpointing(cell):
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return model

    def requested(self, cell: Cell) -> dict[str, str]:
        """See ``TorchBackend``."""
        kept = f"{training.compute_dtype(cell)} on {training.device().split(':')[0]}"
        return super().requested(cell) | {"embedding": kept, "lm_head": kept}


class Liger(HfPeft):
    """Liger's RMSNorm, SwiGLU and rotary kernels, through the trainer's own switch.

    SFTTrainer leaves Liger's fused cross entropy off, since it has a fused head of its own. For an architecture that
    Liger does not know, it changes nothing and says so in a log line only: the audit fails such a cell.
    """

    def unsupported(self, cell: Cell, machine: Environment) -> str | None:
        """See ``Backend``."""
        if not machine.gpus:
            return "Liger's kernels are written in Triton: needs an NVIDIA GPU"
        if "liger-kernel" not in machine.packages:
            return "liger-kernel is not installed: pip install liger-kernel"
        return super().unsupported(cell, machine)

    def trainer_arguments(self, cell: Cell) -> dict[str, Any]:
        """See ``TorchBackend``."""
        return super().trainer_arguments(cell) | {"use_liger_kernel": True}

    def requested(self, cell: Cell) -> dict[str, str]:
        """See ``TorchBackend``."""
        return super().requested(cell) | {"liger": "on"}

    def readings(self, trainer: Any) -> dict[str, str]:
        """``liger``: on, off, or partly where a module of a class that Liger forwards elsewhere is left as it was."""
        modules = list(trainer.model.modules())
        through = {id(m): m for m in modules if _forward_module(m).startswith("liger_kernel.")}
        classes = {type(m) for m in through.values()}
        missed = [m for m in modules if type(m) in classes and id(m) not in through]
        state = "off" if not through else "partly" if missed else "on"
        return super().readings(trainer) | {"liger": state, "liger_modules": str(len(through))}


class Compiled(HfPeft):
    """The whole model through torch.compile with Inductor, by the trainer's own switch.

    With TRL 1.15 and torch 2.11 it ends in an error: Dynamo traces TRL's Triton loss too, Inductor types that kernel's
    Python floats as fp64, where Triton's own launcher takes fp32, and Triton refuses the mix (pytorch/pytorch#190340,
    linkedin/Liger-Kernel#1366). With gradient checkpointing, the hook that PEFT models need on the embedding
    (``requires_grad_``) breaks the graph: how much was compiled is in the reading ``compiled_graphs``.
    """

    def unsupported(self, cell: Cell, machine: Environment) -> str | None:
        """See ``Backend``."""
        if not machine.gpus:
            return "torch.compile is compared on an NVIDIA GPU only"
        if "triton" not in machine.packages:
            return "torch.compile needs Triton: pip install triton"
        if off := [
            name for name in ("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE") if machine.variables.get(name) == "1"
        ]:
            return f"torch.compile is switched off here: unset {' and '.join(off)}"
        return super().unsupported(cell, machine)

    def trainer_arguments(self, cell: Cell) -> dict[str, Any]:
        """See ``TorchBackend``."""
        return super().trainer_arguments(cell) | {"torch_compile": True}

    def requested(self, cell: Cell) -> dict[str, str]:
        """See ``TorchBackend``."""
        return super().requested(cell) | {"compiled": "on"}

    def readings(self, trainer: Any) -> dict[str, str]:
        """``compiled``: on where the trainer holds a compiled module and that module's code became graphs.

        The wrapper alone proves nothing: Dynamo passes over code that it cannot handle and runs it as it stands.
        """
        from torch._dynamo.utils import counters

        graphs, calls = (counters["stats"][name] for name in ("unique_graphs", "calls_captured"))
        breaks = sum(counters["graph_break"].values())
        return super().readings(trainer) | {
            "compiled": "on" if self.holds_compiled(trainer) and graphs else "off",
            "compiled_graphs": f"{graphs} of {calls} calls, {breaks} breaks",
        }

    def holds_compiled(self, trainer: Any) -> bool:
        """Whether the trainer trains through what was to be compiled."""
        from torch._dynamo.eval_frame import OptimizedModule

        return isinstance(trainer.model_wrapped, OptimizedModule)


class CompiledBlocks(Compiled):
    """Each decoder block through torch.compile in place: PyTorch's "regional compilation" recipe.

    All blocks share their code, so they share their graphs: one, or two without checkpointing, since the first block's
    input then needs no gradient. Embedding, head and loss stay as they are.
    """

    def add_adapter(self, cell: Cell, model: Any) -> Any:
        """See ``TorchBackend``."""
        model = super().add_adapter(cell, model)
        for block in _blocks(model):
            block.compile()
        return model

    def trainer_arguments(self, cell: Cell) -> dict[str, Any]:
        """See ``TorchBackend``: without the switch for the whole model."""
        return super(Compiled, self).trainer_arguments(cell)

    def holds_compiled(self, trainer: Any) -> bool:
        """See ``Compiled``."""
        blocks = _blocks(trainer.model)
        return bool(blocks) and all(block._compiled_call_impl is not None for block in blocks)


class NoUpcastLiger(NoUpcast, Liger):
    """Both."""


class LigerCompiled(Liger, Compiled):
    """Both."""


class NoUpcastLigerCompiled(NoUpcast, Liger, Compiled):
    """All three."""


class LigerCompiledBlocks(Liger, CompiledBlocks):
    """Both."""


class NoUpcastLigerCompiledBlocks(NoUpcast, Liger, CompiledBlocks):
    """All three."""


def _blocks(model: Any) -> list[Any]:
    """The decoder blocks: what transformers must not split over devices."""
    classes = set(getattr(model, "_no_split_modules", None) or ())
    return [m for m in model.modules() if type(m).__name__ in classes]


def _forward_module(module: Any) -> str:
    """Name of the Python module that defines what ``module`` runs as its forward."""
    forward = module.__dict__.get("forward", type(module).forward)
    return getattr(forward, "__module__", None) or ""
