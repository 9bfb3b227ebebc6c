"""What this machine is: the environment kept in every record, read without importing torch.

Taken by allow-list only: no user name, host name, home path, token or serial number. Sources: NVML for the GPU,
``importlib.metadata`` for packages, ``/proc`` and ``platform`` for the rest, git for the revision.
"""

import hashlib
import os
import platform
import re
import subprocess
from collections.abc import Collection
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path

import psutil

from bench.cell import Frozen, digest_of

PACKAGES = (
    "torch", "transformers", "peft", "trl", "accelerate", "datasets", "tokenizers", "safetensors", "bitsandbytes",
    "lm-eval", "reasoning-gym", "unsloth", "unsloth_zoo", "triton", "xformers", "flash-attn", "liger-kernel",
    "cut-cross-entropy", "torchao", "numpy", "nvidia-ml-py",
)  # fmt: skip
VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "CUDA_LAUNCH_BLOCKING",
    "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "OMP_NUM_THREADS", "MKL_NUM_THREADS",
    "TORCHINDUCTOR_COMPILE_THREADS", "TOKENIZERS_PARALLELISM",
    "HF_HUB_OFFLINE", "TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE", "TRITON_INTERPRET", "UNSLOTH_ALLOW_CPU",
    "UNSLOTH_COMPILE_DISABLE", "UNSLOTH_DISABLE_CPU_FALLBACK", "UNSLOTH_FORCE_FLOAT32", "UNSLOTH_RETURN_LOGITS",
    "UNSLOTH_ENABLE_LOGGING", "UNSLOTH_STABLE_DOWNLOADS", "UNSLOTH_USE_MODELSCOPE",
)  # fmt: skip
HARNESS_FOLDER = Path(__file__).parent


class Gpu(Frozen):
    """One GPU as NVML describes it."""

    index: int
    name: str
    vram_bytes: int
    compute_capability: str
    power_limit_w: float | None = None
    sm_clock_max_mhz: int | None = None
    ecc: bool | None = None
    mig: bool | None = None


class Package(Frozen):
    """An installed package; ``source`` is index, vcs (with commit), local folder, or unpacked (no installer noted)."""

    version: str
    source: str


class Environment(Frozen):
    """The machine and software of a run."""

    gpus: list[Gpu]
    driver: str | None
    cuda_driver: str | None
    """Highest CUDA version the driver serves."""
    cpu: str
    cpu_cores: int | None
    ram_bytes: int
    os: str
    kernel: str
    python: str
    packages: dict[str, Package]
    variables: dict[str, str]
    git_revision: str | None
    git_dirty: bool | None
    harness_sha256: str
    """Hash over the harness's own source files: says which code ran even where there is no git."""

    @cached_property
    def fingerprint(self) -> str:
        """Two runs with the same fingerprint may be compared; it leaves out git and what cannot sway a number."""
        return digest_of({k: v for k, v in self.comparable().items()})

    def comparable(self) -> dict[str, str]:
        """Everything that may sway a measurement, as flat text: key -> value."""
        flat = {f"package.{name}": p.version for name, p in self.packages.items()}
        flat |= {f"variable.{name}": value for name, value in self.variables.items()}
        flat |= {
            f"gpu{g.index}": f"{g.name}, {g.vram_bytes} bytes, {g.power_limit_w} W, MIG {g.mig}" for g in self.gpus
        }
        return flat | {
            "driver": self.driver or "none", "cpu": self.cpu, "cpu_cores": str(self.cpu_cores), "python": self.python,
            "os": self.os,
        }  # fmt: skip


def package_version(name: str) -> str | None:
    """Installed version of a distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _package(name: str) -> Package | None:
    try:
        dist = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    direct = dist.read_text("direct_url.json") or ""
    if commit := re.search(r'"commit_id":\s*"([0-9a-f]+)"', direct):
        source = f"vcs {commit.group(1)}"
    elif direct:
        source = "local file or folder"
    else:
        source = "index" if dist.read_text("INSTALLER") else "unpacked"
    return Package(version=dist.version, source=source)


def read_gpus() -> tuple[list[Gpu], str | None, str | None]:
    """GPUs, driver version and the driver's CUDA version; an empty list where NVML is absent."""
    try:
        import pynvml as nv

        nv.nvmlInit()
    except Exception:  # no library, no driver, no permission: all mean "no GPU that NVML can see"
        return [], None, None
    try:
        gpus = [_read_gpu(nv, i) for i in range(nv.nvmlDeviceGetCount())]
        cuda = nv.nvmlSystemGetCudaDriverVersion_v2()
        return gpus, str(nv.nvmlSystemGetDriverVersion()), f"{cuda // 1000}.{cuda % 1000 // 10}"
    finally:
        nv.nvmlShutdown()


def _read_gpu(nv, index: int) -> Gpu:  # type: ignore[no-untyped-def]
    handle = nv.nvmlDeviceGetHandleByIndex(index)

    def maybe(read, *args):  # type: ignore[no-untyped-def]
        try:
            return read(handle, *args)
        except nv.NVMLError:
            return None

    limit_mw, mig, ecc = (
        maybe(nv.nvmlDeviceGetPowerManagementLimit), maybe(nv.nvmlDeviceGetMigMode), maybe(nv.nvmlDeviceGetEccMode),
    )  # fmt: skip
    major, minor = nv.nvmlDeviceGetCudaComputeCapability(handle)
    return Gpu(
        index=index,
        name=str(nv.nvmlDeviceGetName(handle)),
        vram_bytes=int(nv.nvmlDeviceGetMemoryInfo(handle).total),
        compute_capability=f"{major}.{minor}",
        power_limit_w=None if limit_mw is None else limit_mw / 1000,
        sm_clock_max_mhz=maybe(nv.nvmlDeviceGetMaxClockInfo, nv.NVML_CLOCK_SM),
        ecc=None if ecc is None else bool(ecc[0]),
        mig=None if mig is None else bool(mig[0]),
    )


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.M)
    return found.group(1).strip() if found else platform.machine()


def _os_name() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", platform.system())
    except OSError:
        return platform.system()


def harness_sha256(folder: Path = HARNESS_FOLDER, without: Collection[str] = ()) -> str:
    """SHA-256 over the path and bytes of every Python file below ``folder``, sorted by path.

    ``without``: names directly in ``folder``, of files or folders, that are left out.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        if path.relative_to(folder).parts[0] in without:
            continue
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _git() -> tuple[str | None, bool | None]:
    """Revision and dirty flag of the harness's checkout.

    Where the checkout came without its git folder, or lies untracked in another repository, PEFTMARK_REVISION names
    the revision it was made from; whether it was changed since is then unknown, and ``harness_sha256`` is what can be
    checked.
    """

    def git(*args: str) -> str:
        out = subprocess.run(["git", "-C", str(HARNESS_FOLDER), *args], capture_output=True, text=True, check=True)
        return out.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("PEFTMARK_REVISION") or None, None


@cache
def current() -> Environment:
    """The environment of this process; read once."""
    gpus, driver, cuda_driver = read_gpus()
    revision, dirty = _git()
    found = {name: _package(name) for name in PACKAGES}
    return Environment(
        gpus=gpus,
        driver=driver,
        cuda_driver=cuda_driver,
        cpu=_cpu_name(),
        cpu_cores=psutil.cpu_count(logical=True),
        ram_bytes=psutil.virtual_memory().total,
        os=_os_name(),
        kernel=platform.release(),
        python=platform.python_version(),
        packages={name: package for name, package in found.items() if package},
        variables={name: os.environ[name] for name in VARIABLES if name in os.environ},
        git_revision=revision,
        git_dirty=dirty,
        harness_sha256=harness_sha256(),
    )
