"""The process that runs families: imports the heavy libraries once, then forks a fresh process for each family.

A kernel that writes out of bounds corrupts its whole process, often noticed only later: its family's process dies, the
case that was running is reported as crashed, and the other families go on untouched. Each process writes JSON lines to
its own file: ``{"start": case, dtype, candidate}`` before and an entry after each run. On a GPU, where most of the time
goes into compiling, a large family's cases are divided among several processes.

Run by ``check``: ``python -m kernels_check.child OUT DEVICE SEED UNSLOTH FAMILY ...`` (UNSLOTH may be empty).
"""

import importlib
import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from kernels_check import interpreter, loading
from kernels_check.families import GPU_FIRST, GPU_PARTS
from kernels_check.processes import AT_ONCE, AT_ONCE_GPU, forked


def main(arguments: list[str]) -> None:
    """Run the named families; see the module's docstring."""
    out, device, seed, unsloth, *families = arguments
    if unsloth:
        sys.path.insert(0, unsloth)
    prepare(device)
    versions = {name: loading.version(name) for name in ("unsloth", "unsloth_zoo", "liger_kernel", "triton", "torch")}
    (Path(out) / "versions.json").write_text(json.dumps(versions))
    run_all(families, Path(out), device, int(seed))


def prepare(device: str) -> None:
    """Import what every family needs, without touching a GPU: a process that has used one cannot fork."""
    if device == "cpu":
        interpreter.prepare_environment()
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # torch.cuda.is_available() without initialising CUDA
    importlib.import_module("triton")  # first: where it is absent or broken, nothing else need be waited for
    import torch

    with _without_torchao():
        import transformers.models.llama.modeling_llama  # noqa: F401  # what most kernel modules import

    if device == "cpu":
        import bitsandbytes  # noqa: F401  # on a GPU its import initialises CUDA

        interpreter.mend()
    loading.register_bare_packages()
    if device == "cpu":
        interpreter.import_device_types()
    torch.set_num_threads(1)


@contextmanager
def _without_torchao() -> Iterator[None]:
    """Hide torchao: transformers imports it where it is installed, and its import asks the GPU what it is."""
    sys.modules["torchao"] = None  # type: ignore[assignment]  # what importlib takes for absent
    try:
        yield
    finally:
        del sys.modules["torchao"]


def parts(family: str, device: str) -> int:
    """Into how many processes a family's cases are divided."""
    return GPU_PARTS.get(family, 1) if device == "cuda" else 1


def file_of(out: Path, family: str, part: int) -> Path:
    """Where the process of one part of a family writes."""
    return out / f"{family}.{part}.jsonl"


def run_all(families: list[str], out: Path, device: str, seed: int) -> None:
    """Fork the processes; note how each ended in its file."""
    import torch

    if torch.cuda.is_initialized():
        raise RuntimeError("CUDA was initialised before the families' processes were forked")
    jobs = [(family, part) for family in families for part in range(parts(family, device))]
    at_once = AT_ONCE
    if device == "cuda":
        jobs.sort(key=lambda job: (job[0] not in GPU_FIRST, -parts(job[0], device)))
        at_once = min(AT_ONCE_GPU, os.cpu_count() or 1)
    for job, code, _ in forked(partial(_family_process, out, device, seed), jobs, at_once):
        _note(file_of(out, *job), {"ended": code})


def _family_process(out: Path, device: str, seed: int, job: tuple[str, int]) -> None:
    """In the forked process: an error is noted before it ends the process."""
    family, part = job
    file = file_of(out, family, part)
    try:
        run_family(family, part, file, device, seed)
    except BaseException:
        _note(file, {"error": traceback.format_exc(limit=-4)})
        raise


def run_family(family: str, part: int, file: Path, device: str, seed: int) -> None:
    """Run every case of one part of a family in this process."""
    from kernels_check import execute

    path = family if "." in family else f"kernels_check.families.{family}"
    for case in importlib.import_module(path).cases()[part :: parts(family, device)]:
        if device not in case.devices:
            continue
        for dtype in case.dtypes:
            runs = device == "cuda" or any(not candidate.cpu_reason for candidate in case.candidates.values())
            expected = execute.expect(case, dtype, seed) if runs else None
            for candidate in case.candidates:
                _note(file, {"start": {"case": case.name, "dtype": dtype, "candidate": candidate}})
                entry = execute.run_one(case, dtype, candidate, device, seed, expected)
                _note(file, {"entry": entry.model_dump(mode="json")})


def _note(file: Path, line: dict[str, object]) -> None:
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
