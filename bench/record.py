"""The Record: what came of one run of one cell, in one fresh process, on one machine.

Raw samples and readings only: a ratio, a median or a verdict is never stored here. Unknown is null. Bytes are bytes,
seconds are seconds of the monotonic clock since the worker was started, unless a name says otherwise.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

from bench.cache import sha256_file
from bench.cell import Cell, Frozen
from bench.environment import Environment

SCHEMA_VERSION = 1

Status = Literal["ok", "oom", "timeout", "crashed", "diverged", "unsupported", "contaminated"]
PhaseName = Literal[
    "import", "load", "adapter", "eval_before", "warmup", "steady", "profile", "eval_after", "save", "probe"
]


class FileRef(Frozen):
    """A file beside the record, with the hash that proves it is the one."""

    path: str
    """Relative to the record's folder."""
    sha256: str
    size_bytes: int

    @classmethod
    def of(cls, path: Path, folder: Path) -> Self:
        """The reference to ``path`` in the record whose folder is ``folder``."""
        relative = path.resolve().relative_to(folder.resolve()).as_posix()
        return cls(path=relative, sha256=sha256_file(path), size_bytes=path.stat().st_size)


class Phase(Frozen):
    """One phase of the run: its own clock, and its own peak under each meter."""

    name: PhaseName
    start_s: float
    wall_s: float
    torch_allocated_peak_bytes: int | None = None
    torch_reserved_peak_bytes: int | None = None
    nvml_process_peak_bytes: int | None = None
    nvml_device_peak_bytes: int | None = None
    host_rss_peak_bytes: int | None = None


class Steps(Frozen):
    """One entry an optimizer step, in order; the lists have equal length.

    The first ``untimed_steps`` of the cell belong to warm-up, the rest to the steady phase.
    """

    wall_s: list[float] = []
    """From the end of the step before to the end of this one, GPU synchronised at both: fetching included."""
    loss: list[float | None] = []
    grad_norm: list[float | None] = []
    """Norm of the gradient before clipping."""
    learning_rate: list[float | None] = []
    samples: list[int] = []
    """Rows of the batches."""
    padded_tokens: list[int] = []
    """Positions computed, padding included."""
    real_tokens: list[int] = []
    """Positions that are not padding."""
    trained_tokens: list[int] = []
    """Positions with a label."""
    trainer_tokens_seen: list[int | None] = []
    """Trainer's own running count (``num_input_tokens_seen``) after the step."""
    trainer_log_s: list[float] = []
    """When Trainer logged the step: a second clock, not used for throughput."""


class AuditEntry(Frozen):
    """One property read back from the loaded model, beside what was asked for (null: not asked)."""

    name: str
    requested: str | None
    effective: str | None
    ok: bool


class ModelFacts(Frozen):
    """What was loaded, and how it can be had again."""

    weights: Literal["real", "random"]
    source_detail: str
    """Hub id and revision, package and version, or the seed and device that made random weights."""
    config_sha256: str
    weights_sha256: str | None = None
    tokenizer_sha256: str
    parameters_total: int | None = None
    parameters_trainable: int | None = None


class AdapterFacts(Frozen):
    """The adapter both sides start from, and the one that came out."""

    initial_sha256: str | None = None
    """Hash over the trainable tensors as loaded, in float32, sorted by name."""
    saved_bytes: int | None = None
    saved_sha256: str | None = None


class DataFacts(Frozen):
    """The bytes that were trained on and scored."""

    train_sha256: str
    eval_sha256: str | None = None
    stream_sha256: str | None = None
    """Hash over input ids and labels of every batch the trainer consumed, in order."""
    stream_checked_in_forward: bool | None = None
    """The first step's input ids, seen by a hook on the model, were those of the stream."""


class EvalResult(Frozen):
    """One evaluation by lm-eval."""

    task: str
    metric: str
    value: float
    stderr: float | None
    items: int
    results: FileRef
    samples: FileRef


class TrainerReport(Frozen):
    """Trainer's own summary of the whole run (warm-up included): a cross-check, not our measurement."""

    train_runtime_s: float | None = None
    train_loss: float | None = None


class GradientProbe(Frozen):
    """Loss and gradients of every adapter tensor on one small batch, from an adapter that both sides draw alike.

    Taken after everything that is timed or metered. ``file`` (safetensors) has one count sketch a tensor, float32, by
    the tensor's name: distances between sketches are those between the gradients, within a known error.
    """

    file: FileRef
    tensors: int
    loss: float
    rows: int
    tokens: int
    """Real tokens of the batch."""


class Fingerprint(Frozen):
    """Which kernels one forward and backward launched, profiled after the timed steps.

    ``file`` (JSON) lists name, count and total microseconds of each, sorted by name; on a CPU the operators stand in.
    """

    file: FileRef
    device: Literal["cuda", "cpu"]
    kernels: int
    """Distinct names."""
    launches: int
    device_s: float
    """Time in all of the file, summed: kernels, and copies between host and device."""
    passes_s: list[float] = []
    """Time in kernels of every profiled pass, copies between host and device left out; the file has the first. Records
    before revision 7326b46 lack it, and have one pass: ``bench.store`` reads it from the file."""
    sha256: str
    """Over names and counts, without times."""


class Health(Frozen):
    """The GPU's condition while the cell ran, from the sampler; ``reasons`` not empty makes the run contaminated."""

    reasons: list[str]
    other_processes_before: int | None = None
    other_processes_during: int | None = None
    throttled_share: float | None = None
    """Share of the steady samples with a thermal or hardware slowdown active, 0 to 1."""
    sm_clock_mhz_median: float | None = None
    """Over the steady samples."""
    sm_clock_mhz_min: float | None = None
    ecc_errors: int | None = None
    """Uncorrected errors that came while the cell ran."""
    xid_errors: list[int] | None = None


class Timeline(Frozen):
    """The NVML and host series sampled from a process beside the worker."""

    file: FileRef
    rows: int
    requested_hz: float
    other_gpu_processes: int
    """Other compute processes seen on the GPU while the cell ran."""


class Record(Frozen):
    """See the module's docstring."""

    schema_version: int = SCHEMA_VERSION
    id: str
    """UTC start time, cell digest and a random suffix: unique, sorts by time."""
    suite: str
    cell_digest: str
    cell: Cell
    repeat: int
    """Which of the suite's repeats this is, from 0."""
    status: Status
    failed_phase: PhaseName | None = None
    message: str | None = None
    started_at: str
    """UTC, ISO 8601."""
    wall_s: float | None = None
    """Process start to end, as the parent saw it."""
    environment: Environment
    device_index: int | None = None
    phases: list[Phase] = []
    steps: Steps = Steps()
    trainer: TrainerReport = TrainerReport()
    audit: list[AuditEntry] = []
    model: ModelFacts | None = None
    adapter: AdapterFacts = AdapterFacts()
    data: DataFacts | None = None
    eval_before: EvalResult | None = None
    eval_after: EvalResult | None = None
    timeline: Timeline | None = None
    probe: GradientProbe | None = None
    fingerprint: Fingerprint | None = None
    health: Health | None = None

    def files(self) -> list[FileRef]:
        """Every file beside the record, in the order of the fields that name them."""
        return list(files_of(self))

    def phase(self, name: PhaseName) -> Phase | None:
        """The phase of that name, if the run reached it."""
        return next((p for p in self.phases if p.name == name), None)


def files_of(part: object) -> Iterator[FileRef]:
    """Every reference to a file within a part of a record."""
    if isinstance(part, FileRef):
        yield part
    elif isinstance(part, Frozen) and not isinstance(part, Cell | Environment):  # which name none
        for _, inner in part:
            yield from files_of(inner)
