"""Whose memory ran out where a run ended out of memory: the host's, the whole GPU's, or what its allocator is allowed.

With other processes on the GPU, an out-of-memory says something about the run only where the allocator's cap
(bench.vram_cap) refused. torch's message tells (c10/cuda/CUDACachingAllocator.cpp; torch 2.11 in committed records):

    CUDA out of memory. Tried to allocate X. GPU 0 has a total capacity of T of which F is free. [Process P has M
    memory in use. ...] [Including non-PyTorch memory, this process has M memory in use.] L allowed; Of the allocated
    memory A is allocated by PyTorch, [with G allocated in private pools (e.g., CUDA Graphs),] and U is reserved by
    PyTorch but unallocated. ...

"L allowed" is there with a cap alone. Before it asks CUDA, the allocator refuses what would take it above the cap:
reserved + X > L, reserved being A + U (A holds G). The message is written after the last attempt, when what could be
given back has been. The sizes are rounded to two decimals of their unit; where that leaves it open, the card decides:
with X free on it, it was the cap that refused. F alone decides nothing, since another process may have freed memory
between the refusal and the message. Other libraries' errors (bitsandbytes, cuBLAS, Unsloth's own) have no such sizes,
and decide nothing either.
"""

import re

from bench.record import Record

_UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def _size(name: str) -> str:
    return rf"(?P<{name}>\d+(?:\.\d+)?) (?P<{name}_unit>bytes|KiB|MiB|GiB)"


_MESSAGE = re.compile(
    rf"Tried to allocate {_size('asked')}\. GPU \d+ has a total capacity of \S+ \w+ of which {_size('free')} is free\. "
    rf"(?:(?!Tried to allocate).)*?{_size('allowed')} allowed; "
    rf"Of the allocated memory {_size('allocated')} is allocated by PyTorch, "
    rf"(?:with \S+ \w+ allocated in private pools \(e\.g\., \w+ Graphs\), )?"
    rf"and {_size('unallocated')} is reserved by PyTorch but unallocated",
    re.DOTALL,
)


def cap_refused(message: str) -> bool:
    """Whether torch's message says that the allocator's cap refused, and not the card; False where it does not tell."""
    found = _MESSAGE.search(message)
    if found is None:
        return False

    def ends(name: str) -> tuple[float, float]:
        """Bytes between which the size lies that was rounded."""
        text, unit = found[name], _UNITS[found[f"{name}_unit"]]
        half = 0.5 * 10.0 ** -len(text.partition(".")[2]) if "." in text else 0.0
        return (float(text) - half) * unit, (float(text) + half) * unit

    wanted = [ends(name) for name in ("asked", "allocated", "unallocated")]
    least, most = (sum(size[side] for size in wanted) for side in (0, 1))
    allowed = ends("allowed")
    if least > allowed[1]:
        return True
    return most > allowed[0] and ends("free")[0] >= ends("asked")[1]


def of_host(record: Record) -> bool:
    """Whether it was the host's memory."""
    return (record.message or "").startswith("MemoryError")


def others(record: Record) -> int:
    """Other processes that were on the GPU, before or during; 0 where that was not watched."""
    health = record.health
    return max(health.other_processes_before or 0, health.other_processes_during or 0) if health else 0


def own(record: Record) -> bool:
    """Whether a run that went out of memory had the GPU to itself, or met its allocator's cap: what it needs is then
    more than what it had."""
    return not of_host(record) and (not others(record) or cap_refused(record.message or ""))
