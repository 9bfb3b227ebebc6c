"""The Finding: two groups of records compared, and the parts it is made of. bench.compare makes them."""

from typing import Literal

from bench.cell import Cell, Frozen
from bench.derived import Meter
from bench.record import PhaseName, Status

Verdict = Literal["measured", "not comparable", "failed", "unsupported"]
CONFIDENCE = 0.95


class Interval(Frozen):
    """A confidence interval: percentile bootstrap over processes (scipy.stats.bootstrap)."""

    low: float
    high: float
    level: float = CONFIDENCE


class Failure(Frozen):
    """A run of a side that did not end ok."""

    record_id: str
    status: Status
    phase: PhaseName | None
    message: str | None


class Accuracy(Frozen):
    """An lm-eval score, 0 to 1; over several processes the median, which has no single standard error."""

    task: str
    metric: str
    value: float
    stderr: float | None
    items: int


class Side(Frozen):
    """The repeats of one cell in one environment: medians over the processes that ended ok."""

    backend: str
    record_ids: list[str]
    processes: int
    """Runs that ended ok; every number below comes from these."""
    failures: list[Failure]
    status: Status
    """ok when any run ended ok, else that of the latest run."""
    random_weights: bool
    tokens_per_s: float | None = None
    """Real tokens (no padding)."""
    padded_tokens_per_s: float | None = None
    step_s: float | None = None
    """Median step, of the processes' medians."""
    mfu: float | None = None
    startup_s: float | None = None
    training_peaks: dict[Meter, int | None]
    """Bytes, rounded where two middle processes are averaged."""
    accuracy_before: Accuracy | None = None
    accuracy_after: Accuracy | None = None


class Memory(Frozen):
    """Training peaks of a pair under one meter."""

    baseline_bytes: int | None
    candidate_bytes: int | None
    saving: float | None
    """1 - candidate / baseline: negative where the candidate needs more."""
    interval: Interval | None


class Parity(Frozen):
    """Did both sides do the same work? Facts only; null is unknown."""

    same_train_data: bool | None
    same_weights: bool | None
    same_initial_adapter: bool | None
    same_stream: bool | None
    """The batches that the trainer consumed, in order."""
    stream_seen_by_model: bool | None
    """On every run a hook on the model saw the stream's first step."""
    step1_loss_baseline: float | None
    step1_loss_candidate: float | None
    step1_loss_difference: float | None
    """Candidate less baseline."""


class Finding(Frozen):
    """One pair compared, or one side alone. ``why`` is empty only where the verdict is "measured"."""

    cell: Cell
    """What both sides share, written with the candidate's backend (the baseline's where that is alone)."""
    machine: str
    environment: str
    """Fingerprint of the shared environment."""
    baseline: Side | None
    candidate: Side | None
    verdict: Verdict
    why: str
    speedup: float | None = None
    """Candidate's real tokens/s over the baseline's: ratio of medians over processes."""
    speedup_interval: Interval | None = None
    no_interval_because: str | None = None
    memory: dict[Meter, Memory] = {}
    parity: Parity | None = None
    break_even_steps: float | None = None
    """Steady steps after which the candidate's dearer startup is earned back; null where it is not dearer, or where
    its steps are not faster."""


class FindingsFile(Frozen):
    """The content of a report's findings.json."""

    schema_version: int = 1
    title: str
    own: list[Finding]
    """From the runs that the report is about."""
    published: list[Finding]
    """From committed results shown beside them."""
