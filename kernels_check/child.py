"""The process that runs families: imports the heavy libraries once, then forks a fresh process for each family.

A kernel that writes out of bounds corrupts its whole process, often noticed only later: its family's process dies, the
case that was running is reported as crashed, and the other families go on untouched. Each family writes JSON lines to
its own file: ``{"start": case, dtype, candidate}`` before and an entry after each run.

Run by ``check``: ``python -m kernels_check.child OUT DEVICE SEED UNSLOTH FAMILY ...`` (UNSLOTH may be empty).
"""

import importlib
import json
import os
import sys
import traceback
from functools import partial
from pathlib import Path

from kernels_check import interpreter, loading
from kernels_check.processes import forked


def main(arguments: list[str]) -> None:
    """Run the named families; see the module's docstring."""
    out, device, seed, unsloth, *families = arguments
    if unsloth:
        sys.path.insert(0, unsloth)
    prepare(device)
    versions = {name: loading.version(name) for name in ("unsloth", "unsloth_zoo", "liger_kernel", "triton", "torch")}
    (Path(out) / "versions.json").write_text(json.dumps(versions))
    run_all([(name, Path(out) / f"{name}.jsonl") for name in families], device, int(seed))


def prepare(device: str) -> None:
    """Import what every family needs, without touching a GPU: a process that has used one cannot fork."""
    if device == "cpu":
        interpreter.prepare_environment()
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # torch.cuda.is_available() without initialising CUDA
    importlib.import_module("triton")  # first: where it is absent or broken, nothing else need be waited for
    import torch
    import transformers.models.llama.modeling_llama  # noqa: F401  # what most kernel modules import

    if device == "cpu":
        import bitsandbytes  # noqa: F401  # on a GPU its import initialises CUDA

        interpreter.mend()
    loading.register_bare_packages()
    torch.set_num_threads(1)


def run_all(families: list[tuple[str, Path]], device: str, seed: int) -> None:
    """Fork a process for each family; note how each ended in its file."""
    import torch

    if torch.cuda.is_initialized():
        raise RuntimeError("CUDA was initialised before the families' processes were forked")
    for (_, file), code, _ in forked(partial(_family_process, device, seed), families):
        _note(file, {"ended": code})


def _family_process(device: str, seed: int, job: tuple[str, Path]) -> None:
    """In the forked process: an error is noted before it ends the process."""
    family, file = job
    try:
        run_family(family, file, device, seed)
    except BaseException:
        _note(file, {"error": traceback.format_exc(limit=-4)})
        raise


def run_family(family: str, file: Path, device: str, seed: int) -> None:
    """Run every case of one family in this process."""
    from kernels_check import execute

    path = family if "." in family else f"kernels_check.families.{family}"
    for case in importlib.import_module(path).cases():
        if device not in case.devices:
            continue
        for dtype in case.dtypes:
            expected = execute.expect(case, dtype, seed)
            for candidate in case.candidates:
                _note(file, {"start": {"case": case.name, "dtype": dtype, "candidate": candidate}})
                entry = execute.run_one(case, dtype, candidate, device, seed, expected)
                _note(file, {"entry": entry.model_dump(mode="json")})


def _note(file: Path, line: dict[str, object]) -> None:
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
