"""The Finding: two groups of records compared, and the parts it is made of. bench.compare makes them."""

from typing import Literal

from bench.accuracy import PairedAccuracy
from bench.cell import Cell, Frozen
from bench.derived import Meter
from bench.fingerprint import Difference
from bench.parity import Parity
from bench.record import PhaseName, Status
from bench.stats import RateVerdict, Ratio, Spread

Verdict = Literal["measured", "parity failed", "not comparable", "failed", "unsupported"]


class Interval(Frozen):
    """A confidence interval over processes (bench.stats)."""

    low: float
    high: float
    level: float


class Control(Frozen):
    """A side against itself: what the method says where there is nothing to find."""

    ratio: Ratio
    verdict: RateVerdict


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
    """Runs that count: those that ended ok, and contaminated ones where asked for. Every number below is theirs, but
    accuracy and the process's own peaks: those are of every run that computed well (bench.health)."""
    contaminated: int
    """How many of them were contaminated."""
    failures: list[Failure]
    status: Status
    """ok when any run counts, else that of the latest run."""
    random_weights: bool
    tokens_per_s: float | None = None
    """Real tokens (no padding)."""
    padded_tokens_per_s: float | None = None
    step_s: float | None = None
    """Median step, of the processes' medians."""
    gpu_work_s: float | None = None
    """GPU kernels of a step's forward and backward (bench.derived), median over processes."""
    gpu_share: float | None = None
    """The same over the median step."""
    mfu: float | None = None
    startup_s: float | None = None
    unsettled: int
    """Processes whose step times never settled."""
    training_peaks: dict[Meter, Spread | None]
    contaminated_peaks: int = 0
    """Contaminated runs besides, of which the peaks of the process's own meters are taken in."""
    control: Control | None = None
    """Null below six processes."""
    accuracy_before: Accuracy | None = None
    accuracy_after: Accuracy | None = None


class Memory(Frozen):
    """Training peaks of a pair under one meter."""

    baseline: Spread | None
    candidate: Spread | None
    saving: float | None = None
    """1 - candidate / baseline of the medians: negative where the candidate needs more."""
    least: float | None = None
    """Saving of the candidate's greatest peak over the baseline's least."""
    most: float | None = None
    """Saving of the candidate's least peak over the baseline's greatest."""


class Finding(Frozen):
    """One pair compared, or one side alone. ``why`` is empty only where the verdict is "measured"."""

    cell: Cell
    """What both sides share, written with the candidate's backend (the baseline's where that is alone)."""
    machine: str
    environment: str
    """Fingerprint of the environment."""
    across: list[str] = []
    """What differs between the environments and was allowed to, with both values."""
    baseline: Side | None
    candidate: Side | None
    verdict: Verdict
    why: str
    speedup: float | None = None
    """Candidate's real tokens/s over the baseline's: ratio of medians over processes."""
    speedup_interval: Interval | None = None
    rates: Ratio | None = None
    """The ratio's statistics: minimum detectable effect, p-value, and why there is no interval."""
    adjusted_p_value: float | None = None
    """Holm's, over all findings made together."""
    speed: RateVerdict | None = None
    """Of the candidate; null where there is no speedup."""
    gpu_work: Ratio | None = None
    """Baseline's GPU time over the candidate's: what the ratio of rates would be if no step waited for the CPU."""
    gpu_work_interval: Interval | None = None
    memory: dict[Meter, Memory] = {}
    parity: Parity | None = None
    dispatch: Difference | None = None
    """Kernels that only one side launched, and changed counts; null for two backends and where not recorded."""
    break_even_steps: float | None = None
    """Steady steps after which the candidate's dearer startup is earned back; null where it is not dearer, or where
    its steps are not faster."""


class AccuracyFinding(Frozen):
    """Accuracy after the fine-tune, the same items answered by both sides, one pair of runs a seed."""

    cell: Cell
    """The candidate's, of the first seed."""
    machine: str
    environment: str
    baseline: str
    """Backend."""
    task: str
    metric: str
    seeds: list[int]
    contaminated: int = 0
    """How many of the runs were: their times do not count, their answers do (bench.health)."""
    record_ids: list[str]
    paired: PairedAccuracy | None
    why: str = ""
    """Why the items could not be paired."""


class Findings(Frozen):
    """All that was found in one set of records."""

    pairs: list[Finding] = []
    accuracy: list[AccuracyFinding] = []


class FindingsFile(Frozen):
    """The content of a report's findings.json."""

    schema_version: int = 2
    title: str
    own: Findings
    """From the runs that the report is about."""
    published: Findings
    """From committed results shown beside them."""
