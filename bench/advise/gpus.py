"""The GPUs of gpus.yaml, and the one in this machine."""

from functools import cache
from pathlib import Path
from typing import Literal

import yaml

from bench.cell import Frozen
from bench.errors import InputError, nearest

FILE = Path(__file__).parent / "gpus.yaml"
MIB = 2**20


class GpuSpec(Frozen):
    """One GPU; see the head of gpus.yaml for what each figure is."""

    name: str
    nvml_name: str
    memory_mib: int
    memory_from: Literal["record", "nvidia-smi", "nominal", "this machine"]
    bandwidth_gb_s: float
    tensor_tflops: float
    compute_capability: float
    source: str

    @property
    def bf16(self) -> bool:
        return self.compute_capability >= 8.0


@cache
def table() -> dict[str, GpuSpec]:
    """Every GPU by its short name."""
    content = yaml.load(FILE.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return {name: GpuSpec(name=name, **fields) for name, fields in content.items()}


def by_nvml_name(nvml_name: str) -> GpuSpec | None:
    """The GPU that NVML calls so; None for one that is not in the table."""
    return next((gpu for gpu in table().values() if gpu.nvml_name == nvml_name), None)


def find(name: str) -> GpuSpec:
    """The GPU of that short or NVML name, or of this machine for ``auto``; InputError with the nearest name."""
    if name == "auto":
        return _here()
    wanted = name.strip().lower().replace(" ", "-").replace("_", "-")
    if found := table().get(wanted) or table().get(wanted.removeprefix("nvidia-").removeprefix("geforce-")):
        return found
    if by_name := by_nvml_name(name):
        return by_name
    close = nearest(wanted, list(table()))
    raise InputError(f"--gpu {name!r}", "not in the table of GPUs", f"{close} Or use 'auto' on the machine itself")


def _here() -> GpuSpec:
    from bench import environment

    gpus = environment.current().gpus
    if not gpus:
        raise InputError("--gpu auto", "NVML sees no GPU here", "name one: " + ", ".join(table()))
    known = by_nvml_name(gpus[0].name)
    if known is None:
        raise InputError(
            f"--gpu auto ({gpus[0].name})", "not in the table of GPUs, so its speed is unknown",
            "add a line with its datasheet's figures to bench/advise/gpus.yaml",
        )  # fmt: skip
    return known.model_copy(update={"memory_mib": gpus[0].vram_bytes // MIB, "memory_from": "this machine"})
