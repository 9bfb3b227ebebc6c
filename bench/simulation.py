"""How often the statistics err, simulated from the step noise of recorded runs.

    python -m bench.simulation results > tables.md        some minutes; the tables of docs/statistics.md

A simulated process is a circular block bootstrap of a record's steady steps, times a factor of its own drawn from a
log-normal distribution: ``between``, the spread between processes, which a single recorded process cannot show.
``measured_between`` estimates it where one cell was run in several processes.
"""

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.derived import derive
from bench.record import Record
from bench.stats import ALPHA, RateVerdict, abba_halves, detectable, ratio, verdict
from bench.steady import steady
from bench.store import load

Array = NDArray[np.float64]
EXPERIMENTS = 1000
SLOWDOWN = 0.03
SPREADS = (0.0025, 0.005, 0.0075, 0.01, 0.0125, 0.015, 0.02, 0.03)


def steady_steps(record: Record) -> Array:
    """Seconds of the record's steady steps."""
    walls = record.steps.wall_s
    return np.array(walls[steady(walls, floor=record.cell.untimed_steps).first :])


def block_length(steps: int) -> int:
    """Longer than the lag over which recorded steps stay correlated; grows as the cube root of the series."""
    return min(steps, int(np.ceil(2 * steps ** (1 / 3))))


def process_rates(steps_s: Array, shape: tuple[int, ...], rng: np.random.Generator, *, between: float = 0.0) -> Array:
    """Rates (steps/s, mean step) of simulated processes with as many steps as recorded, array of ``shape``.

    ``between`` is the standard deviation of the logarithm of a process's rate beyond what its steps explain.
    """
    count = len(steps_s)
    block = block_length(len(steps_s))
    starts = rng.integers(len(steps_s), size=(*shape, -(-count // block), 1))
    drawn = steps_s[(starts + np.arange(block)) % len(steps_s)].reshape(*shape, -1)[..., :count]
    return np.asarray(np.exp(rng.normal(0, between, shape)) / drawn.mean(axis=-1))


def verdicts(baseline: Array, candidate: Array) -> Counter[RateVerdict]:
    """Verdicts of experiments: arrays of shape (experiments, processes)."""
    return Counter(verdict(ratio(c.tolist(), b.tolist())) for b, c in zip(baseline, candidate, strict=True))


def experiments(
    steps_s: Array, *, processes: int, between: float, slowdown: float, count: int, seed: int
) -> Counter[RateVerdict]:
    """Verdicts of ``count`` experiments of a record against itself, the candidate's steps longer by ``slowdown``."""
    rng = np.random.default_rng(seed)
    shape = (count, processes)
    base = process_rates(steps_s, shape, rng, between=between)
    candidate = process_rates(steps_s, shape, rng, between=between) / (1 + slowdown)
    return verdicts(base, candidate)


def measured_between(records: Iterable[Record]) -> dict[str, float]:
    """By cell with at least three ok processes in one environment: spread of the log rate beyond its steps' own.

    Method of moments: variance over processes less the mean variance that the block bootstrap gives one process;
    0 where the steps explain all of it.
    """
    groups: dict[tuple[str, str], list[Array]] = defaultdict(list)
    for record in records:
        if record.status == "ok" and record.steps.wall_s:
            groups[record.cell.slug, record.environment.fingerprint].append(steady_steps(record))
    rng = np.random.default_rng(0)
    found = {}
    for (slug, _), runs in groups.items():
        if len(runs) >= 3:
            total = np.var([np.log(1 / run.mean()) for run in runs], ddof=1)
            within = np.mean([np.var(np.log(process_rates(run, (400,), rng))) for run in runs])
            found[slug] = float(np.sqrt(max(0.0, total - within)))
    return found


def gpu_work(records: Iterable[Record]) -> dict[str, list[float]]:
    """By cell with at least six profiled ok processes in one environment: seconds of GPU time, in the order run."""
    groups: dict[tuple[str, str], list[tuple[str, float]]] = defaultdict(list)
    for record in records:
        if work_s := derive(record, lambda _: None).gpu_work_s:
            groups[record.cell.slug, record.environment.fingerprint].append((record.started_at, work_s))
    return {slug: [time_s for _, time_s in sorted(runs)] for (slug, _), runs in groups.items() if len(runs) >= 6}


def coverage(draw: Callable[[np.random.Generator, int, int], tuple[Array, Array]], processes: int, count: int) -> dict[
    str, tuple[float, float]
]:  # fmt: skip
    """Share of intervals at 95 and 99 % that hold a true ratio of 1, by method; ``draw`` gives logarithms."""
    from scipy.stats import bootstrap, ttest_ind, ttest_rel

    first, second = draw(np.random.default_rng(1), count, processes)

    def resampled(method: Any, level: float) -> Any:
        def statistic(a: Array, b: Array, axis: int) -> Any:
            return np.median(a, axis=axis) - np.median(b, axis=axis)

        return bootstrap(
            (first, second), statistic, axis=-1, confidence_level=level, method=method, n_resamples=1999, batch=200,
            rng=np.random.default_rng(2),
        ).confidence_interval  # fmt: skip

    methods: dict[str, Callable[[float], Any]] = {
        "bootstrap, percentile": lambda level: resampled("percentile", level),
        "bootstrap, BCa": lambda level: resampled("BCa", level),
        "Welch's t": lambda level: ttest_ind(first, second, axis=-1, equal_var=False).confidence_interval(level),
        "paired t": lambda level: ttest_rel(first, second, axis=-1).confidence_interval(level),
    }

    def share(interval: Any) -> float:
        return float(np.mean((interval.low <= 0) & (interval.high >= 0)))

    with np.errstate(all="ignore"):  # BCa is undefined (NaN: not covered) where its jackknife has no spread
        return {name: (share(of(0.95)), share(of(0.99))) for name, of in methods.items()}


def power(spread: float, processes: int, change: float, count: int = EXPERIMENTS, seed: int = 5) -> float:
    """Share of experiments that call a slowdown of ``change`` slower, where log rates are normal with ``spread``."""
    rng = np.random.default_rng(seed)
    base = np.exp(rng.normal(0, spread, (count, processes)))
    candidate = np.exp(rng.normal(0, spread, (count, processes))) / (1 + change)
    return verdicts(base, candidate)["slower"] / count


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)) + "\n"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def largest_spread(processes: int, change: float = SLOWDOWN, share: float = 0.95) -> float:
    """The spread of a process at which Welch's t at ALPHA finds ``change`` with probability ``share``."""
    return float(np.log1p(change) / detectable(processes, processes, share))


def drifted(rng: np.random.Generator, count: int, n: int, spread: float, drift: float) -> tuple[Array, Array]:
    """Logarithms of normal rates, both sides alike, that fall by ``drift`` from one process to the next, run ABBA."""
    turn = np.arange(n) % 2
    noise = rng.normal(0, spread, (2, count, n))
    order = 2 * np.arange(n) + np.stack([turn, 1 - turn])
    first, second = noise - drift * order[:, None, :]
    return first, second


def noises(pool: Array) -> dict[str, Callable[[np.random.Generator, int, int], tuple[Array, Array]]]:
    """Noise for ``coverage``; ``pool`` holds the logarithms of a record's simulated processes."""
    return {
        "recorded": lambda rng, count, n: (rng.choice(pool, (count, n)), rng.choice(pool, (count, n))),
        "normal, 1 %": lambda rng, count, n: drifted(rng, count, n, 0.01, 0),
        "normal, 1 %, falling 1 % a process": lambda rng, count, n: drifted(rng, count, n, 0.01, 0.01),
    }


def power_under_drift(
    drift: float, spread: float = 0.005, processes: int = 6, count: int = 4000
) -> tuple[float, float]:
    """Share of slowdowns found at ALPHA by Welch's t and by the paired t over adjacent processes."""
    from scipy.stats import ttest_ind, ttest_rel

    base, candidate = drifted(np.random.default_rng(4), count, processes, spread, drift)
    candidate = candidate - np.log1p(SLOWDOWN)
    tests = ttest_ind(candidate, base, axis=1, equal_var=False), ttest_rel(candidate, base, axis=1)
    welch, paired = (float(np.mean((test.pvalue < ALPHA) & (test.statistic < 0))) for test in tests)
    return welch, paired


def main(folder: Path) -> None:
    """Print every table, from the runs on a GPU."""
    ok = [item.record for item in load(folder)[0] if item.record.status == "ok" and item.record.steps.wall_s]
    records = [record for record in ok if record.device_index is not None]
    recorded = {r.cell.slug: steady_steps(r) for r in records}  # repeats of a cell have its noise: the latest stands
    _print_methods(max(recorded.values(), key=len))
    _print_measured(records, recorded)
    _print_same(recorded)
    _print_slowdown(recorded)
    _print_power()


def _print_methods(steps_s: Array) -> None:
    pool = np.log(process_rates(steps_s, (20_000,), np.random.default_rng(0)))
    print("### Coverage of intervals\n")
    print(table(
        ["noise", "processes a side", "interval", "95 %", "99 %"],
        ([noise, str(n), method, percent(a), percent(b)] for noise, draw in noises(pool).items() for n in (3, 4, 6, 8)
         for method, (a, b) in coverage(draw, n, 2000).items()),
    ))  # fmt: skip
    print("### Drift: share of 3 % slowdowns found, 6 processes a side, sd 0.5 %\n")
    print(table(["fall from process to process", "Welch's t", "paired t"],
                ([f"{100 * d:g} %", *map(percent, power_under_drift(d))]
                 for d in (0, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.01))))  # fmt: skip


def _print_measured(records: list[Record], recorded: dict[str, Array]) -> None:
    """What was measured of the spread between processes, and what it does to experiments of 8 and 6 a side."""
    between, work = measured_between(records), gpu_work(records)
    rows = []
    for seed, (slug, sd) in enumerate(between.items()):
        same = experiments(recorded[slug], processes=8, between=sd, slowdown=0, count=EXPERIMENTS, seed=seed)
        slow = experiments(recorded[slug], processes=6, between=sd, slowdown=SLOWDOWN, count=EXPERIMENTS, seed=seed)
        false = same["faster"] + same["slower"]
        rows.append([slug, percent(sd), percent(false / EXPERIMENTS), percent(slow["slower"] / EXPERIMENTS)])
    print("### Spread between processes, as measured\n")
    header = ["cell", "sd of log rate", "8 a side: false verdicts", f"6 a side: {percent(SLOWDOWN)} slower found"]
    print(table(header, rows) if rows else "No cell has three processes in one environment.\n")
    print("### GPU time of forward and backward, over the same processes\n")
    rows = []
    for slug, times_s in work.items():
        sd = float(np.std(np.log(times_s), ddof=1))
        itself = ratio(*abba_halves(times_s))
        ends = itself.interval() or (np.nan, np.nan)
        rows.append([
            slug, str(len(times_s)), f"{100 * sd:.2f} %", f"{itself.value:.4f} [{ends[0]:.4f}, {ends[1]:.4f}]",
            verdict(itself), percent(power(sd, 6, SLOWDOWN)),
        ])  # fmt: skip
    header = ["cell", "processes", "sd of log time", "one half over the other, 99 %", "verdict", header[-1]]
    print(table(header, rows) if rows else "No cell was profiled on a GPU in six processes of one environment.\n")


def _print_same(recorded: dict[str, Array]) -> None:
    from scipy.stats import binomtest

    print("### A record against itself: share of faster or slower\n")
    cases = [(n, b) for n in (6, 8) for b in (0.0, 0.01)]
    totals: Counter[tuple[int, float]] = Counter()
    rows = []
    for seed, (name, steps) in enumerate(recorded.items()):
        cells = []
        for n, b in cases:
            found = experiments(steps, processes=n, between=b, slowdown=0, count=EXPERIMENTS, seed=seed)
            false = found["faster"] + found["slower"]
            totals[n, b] += false
            cells.append(f"{percent(false / EXPERIMENTS)} (same {percent(found['same'] / EXPERIMENTS)})")
        rows.append([name, *cells])
    count = EXPERIMENTS * len(recorded)
    bounds = [binomtest(totals[case], count).proportion_ci() for case in cases]
    shares = [f"{100 * totals[c] / count:.2f} % ({100 * b.low:.2f} to {100 * b.high:.2f} %)"
              for c, b in zip(cases, bounds, strict=True)]  # fmt: skip
    rows.append([f"**all {count}** (95 % interval)", *shares])
    print(table(["record", *(f"{n} a side, between {percent(b)}" for n, b in cases)], rows))


def _print_slowdown(recorded: dict[str, Array]) -> None:
    print(f"### A slowdown of {percent(SLOWDOWN)}, 6 processes a side: share found\n")
    extra = (0.0, 0.0025, 0.005, 0.01)
    target = largest_spread(6)
    rows = []
    for seed, (name, steps) in enumerate(recorded.items()):
        own = float(np.std(np.log(process_rates(steps, (4000,), np.random.default_rng(0)))))
        found = [experiments(steps, processes=6, between=b, slowdown=SLOWDOWN, count=EXPERIMENTS, seed=seed)["slower"]
                 for b in extra]  # fmt: skip
        needed = int(np.ceil(len(steps) * max(1.0, (own / target) ** 2)))
        rows.append(
            [name, str(len(steps)), f"{100 * own:.2f} %", *(percent(f / EXPERIMENTS) for f in found), str(needed)]
        )
    between = [f"between {100 * b:g} %" for b in extra]
    print(table(["record", "steady steps", "sd of a process", *between, "steps for 95 %, between 0"], rows))


def _print_power() -> None:
    print("### Power, 6 processes a side, by sd of a process (log rate; steps and between together)\n")
    changes = (0.01, 0.02, 0.03, 0.05, 0.10)
    print(table(["sd", *(f"{100 * c:g} % slower" for c in changes)],
                ([f"{100 * s:g} %", *(percent(power(s, 6, c)) for c in changes)] for s in SPREADS)))  # fmt: skip
    print(f"### Power for {percent(SLOWDOWN)}, by processes a side\n")
    sizes = (3, 4, 5, 6, 8, 12)
    rows = [[f"{100 * s:g} %", *(percent(power(s, n, SLOWDOWN)) for n in sizes)] for s in SPREADS]
    rows.append(["**largest sd with 95 %**", *(f"{100 * largest_spread(n):.2f} %" for n in sizes)])
    print(table(["sd", *map(str, sizes)], rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
