"""Who refused: torch's messages in its own format, with and without a cap."""

from pathlib import Path

import pytest

from bench.oom import cap_refused, of_host, others, own
from bench.record import Health, Record
from bench.store import load
from tests.synthetic import unfinished

RESULTS = Path(__file__).resolve().parents[1] / "results"


def message(
    asked: str = "512.00 MiB", free: str = "486.19 MiB", allowed: str | None = "22.90 GiB",
    allocated: str = "22.01 GiB", unallocated: str = "420.50 MiB", processes: str = "", pools: str = "",
) -> str:  # fmt: skip
    """As c10/cuda/CUDACachingAllocator.cpp puts it together."""
    return (
        f"CUDA out of memory. Tried to allocate {asked}. GPU 0 has a total capacity of 79.18 GiB of which {free} is "
        f"free. {processes}{f'{allowed} allowed; ' if allowed else ''}Of the allocated memory {allocated} is allocated "
        f"by PyTorch, {pools}and {unallocated} is reserved by PyTorch but unallocated. If reserved but unallocated "
        "memory is large try setting PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation."
    )


PROCESSES = (
    "Process 4711 has 39.10 GiB memory in use. Process 4712 has 16.20 GiB memory in use. Including non-PyTorch memory, "
    "this process has 23.39 GiB memory in use. "
)
AT_CAP = message(processes=PROCESSES)
"""22.01 + 0.41 + 0.5 GiB are more than 22.90."""
AT_CARD = message(allocated="15.00 GiB", processes=PROCESSES)


@pytest.mark.parametrize("text, expected", [
    (AT_CAP, True),
    (AT_CARD, False),
    (message(free="40.00 GiB"), True),
    (message(free="0 bytes"), True),  # the allocator does not ask the card for what its cap forbids
    (message(allocated="15.00 GiB", free="40.00 GiB"), False),  # within the cap: freed by others since
    (message(allowed=None), False),
    (message(pools="with 17.00 MiB allocated in private pools (e.g., CUDA Graphs), "), True),
    (message(asked="20.97 GiB", allowed="22.90 GiB", allocated="163.26 MiB", unallocated="18.74 MiB"), False),
    (message(asked="23.97 GiB", allowed="22.90 GiB", allocated="163.26 MiB", unallocated="18.74 MiB"), True),
    (message(asked="512 bytes", allowed="1.00 MiB", allocated="1023.80 KiB", unallocated="512 bytes"), True),
])  # fmt: skip
def test_the_cap_refused_where_it_leaves_no_room_for_what_was_asked(text: str, expected: bool) -> None:
    assert cap_refused(text) is expected


def test_within_the_rounding_the_card_decides() -> None:
    """22.88 GiB and 20 MiB are 22.8995: the true sum lies on either side of the true cap."""
    close = {"asked": "20.00 MiB", "allocated": "22.88 GiB", "unallocated": "0 bytes"}
    assert cap_refused(message(**close, free="20.01 MiB"))
    assert not cap_refused(message(**close, free="20.00 MiB")), "it may have been less than 20 MiB"
    assert not cap_refused(message(**close, free="2.19 MiB"))


def test_a_message_of_torch_in_the_records_has_this_form() -> None:
    """Also beside other processes, under a cap (suite h100-caps)."""
    full = [r for r in (i.record for i in load(RESULTS)[0]) if r.status == "oom"]
    assert {r.cell.vram_budget_bytes is None for r in full} == {True, False}
    for record in full:
        text = record.message or ""
        assert cap_refused(text) is (record.cell.vram_budget_bytes is not None)
        if not cap_refused(text):
            assert cap_refused(text.replace("Of the allocated", "78.00 GiB allowed; Of the allocated"))
            assert not cap_refused(text.replace("Of the allocated", "79.18 GiB allowed; Of the allocated"))


@pytest.mark.parametrize("text", [
    "", "CUDA out of memory", "Error 2 out of memory at line 380 in file csrc/ops.cu",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "Unsloth: Your GPU ran out of memory. Tried to allocate 22.90 GiB allowed; ",
    AT_CAP[:250],
])  # fmt: skip
def test_other_messages_decide_nothing(text: str) -> None:
    assert not cap_refused(text)


def ended(text: str, **fields: object) -> Record:
    return unfinished("unsloth", "oom", text, health=Health(reasons=[], **fields))  # type: ignore[arg-type]


def test_whose_memory_it_was() -> None:
    assert own(ended("CUDA out of memory", other_processes_before=0, other_processes_during=0))
    assert own(unfinished("unsloth", "oom", "CUDA out of memory")), "nobody watched"
    beside = [ended(text, other_processes_before=1, other_processes_during=3) for text in (AT_CAP, AT_CARD)]
    assert [own(one) for one in beside] == [True, False] and others(beside[0]) == 3
    host = ended("MemoryError: ")
    assert of_host(host) and not own(host)
