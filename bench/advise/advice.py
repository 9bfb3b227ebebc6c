"""Advice for one GPU and one model: what fits, how fast, how accurate, and which rank."""

from collections.abc import Callable, Sequence

from bench.advise.fit import Fit
from bench.advise.gpus import table
from bench.advise.parts import Part
from bench.advise.predict import Interval
from bench.advise.question import Asked, Verdict, fits, predict_for, setup_for, verdict
from bench.advise.rank import RankAccuracy, RankScore, nearest
from bench.advise.remedy import changes_that_fit
from bench.advise.speed import Rate, predict_rate
from bench.cell import Frozen

RANKS = (4, 8, 16, 32, 64, 128, 256)
SEQUENCE_STEP = 256
LONGEST, LARGEST_BATCH = 1_048_576, 1024
ANOTHER_CARD = 0.05
"""Memory further from the table's than drivers and ECC move it: a card of the same name and another size."""


class Choice(Frozen):
    """One row of the table: a rank with a backend."""

    backend: str
    r: int
    verdict: Verdict
    nvml: Interval
    needed_bytes: float
    torch_allocated: Interval
    torch_reserved: Interval
    parts: list[Part]
    moment: str
    beyond: list[str]
    rate: Rate | None
    trainable: int
    adapter_file_bytes: int
    accuracy: RankScore | None


class Evidence(Frozen):
    """Accuracy by rank that the recommendation rests on."""

    backend: str
    told: str
    ranks: RankAccuracy


class Advice(Frozen):
    """The whole answer."""

    asked: Asked
    choices: list[Choice]
    recommended: Choice | None
    why: str
    longest_sequence: dict[str, int]
    """By backend, at the recommended rank and the batch asked for; 0 where not even the shortest fits."""
    largest_batch: dict[str, int]
    instead: list[str]
    """Where nothing fits: the nearest changes that would."""
    evidence: list[Evidence]
    notes: list[str]
    fit_made_on: str
    fit_records: list[str]


def advise(asked: Asked, fit: Fit) -> Advice:
    """Answer a question from a fit; raises nothing where the GPU is too small, since that is an answer."""
    choices = [_choice(asked, fit, backend, r) for backend in asked.backends for r in RANKS]
    evidence = [
        Evidence(backend=backend, told=told, ranks=one)
        for backend in asked.backends
        for one, told in [nearest(fit.accuracy, asked.model.name, asked.model.shape.model_type, backend)]
        if one
    ]
    recommended, why = _recommend(choices, evidence)
    r = recommended.r if recommended else RANKS[0]
    fitting = {c.backend for c in choices if c.verdict == "fits"}
    return Advice(
        asked=asked, choices=choices, recommended=recommended, why=why,
        longest_sequence={b: _longest(asked, fit, b, r) for b in asked.backends},
        largest_batch={b: _largest_batch(asked, fit, b, r) for b in asked.backends},
        instead=[] if fitting else changes_that_fit(asked, fit, RANKS[0]),
        evidence=evidence, notes=_notes(asked, fit, choices), fit_made_on=fit.made_on, fit_records=fit.record_ids,
    )  # fmt: skip


def _choice(asked: Asked, fit: Fit, backend: str, r: int) -> Choice:
    setup, shape = setup_for(asked, backend, r), asked.model.shape
    made = predict_for(asked, fit, backend, r)
    known, _ = nearest(fit.accuracy, asked.model.name, shape.model_type, backend)
    trainable = shape.trainable(r)
    return Choice(
        backend=backend, r=r, verdict=verdict(asked, made), nvml=made.peaks["nvml_process"],
        needed_bytes=made.needed_bytes, torch_allocated=made.peaks["torch_allocated"],
        torch_reserved=made.peaks["torch_reserved"],
        parts=made.estimate.parts, moment=made.estimate.moment,
        beyond=made.beyond, rate=predict_rate(fit.speeds, shape, setup, asked.gpu), trainable=trainable,
        adapter_file_bytes=trainable * setup.adapter_bytes,
        accuracy=next((score for score in known.ranks if score.r == r), None) if known else None,
    )  # fmt: skip


def _recommend(choices: Sequence[Choice], evidence: Sequence[Evidence]) -> tuple[Choice | None, str]:
    """By the rule: the smallest rank that is not worse than the best by more than the margin, and that fits."""
    fitting = [c for c in choices if c.verdict == "fits"]
    if not fitting:
        tight = [f"r {c.r} with {c.backend}" for c in choices if c.verdict == "tight"]
        told = "no rank fits for sure" if tight else "no rank fits"
        return None, told + (f"; tight, so that it may fit: {', '.join(tight)}" if tight else "")
    enough = {e.backend: e.ranks.enough for e in evidence}
    good = [c for c in fitting if c.r >= enough.get(c.backend, 16)]
    best = {b: min((c for c in good if c.backend == b), key=lambda c: c.r) for b in {c.backend for c in good}}
    if best:
        chosen = max(best.values(), key=lambda c: (c.rate.value if c.rate else 0.0, -c.nvml.value))
        rank = next((e.ranks for e in evidence if e.backend == chosen.backend), None)
        if rank is None:
            return chosen, f"r {chosen.r}: no accuracy by rank was measured; 16 is the default of Unsloth's notebooks"
        return chosen, (
            f"r {chosen.r} is the smallest whose accuracy is not worse than the best measured by more than "
            f"{rank.margin:.0%} of the items, and it fits" + _cost(chosen, choices)
        )
    chosen = max(fitting, key=lambda c: (c.r, c.rate.value if c.rate else 0.0))
    return (
        chosen,
        f"r {chosen.r} is the largest that fits; the accuracy measured asks for r {enough.get(chosen.backend, 16)}",
    )


def _cost(chosen: Choice, choices: Sequence[Choice]) -> str:
    least = next(c for c in choices if c.backend == chosen.backend and c.r == RANKS[0])
    if chosen.rate is None or least.rate is None or chosen.r == least.r:
        return ""
    slower, more = 1 - chosen.rate.value / least.rate.value, (chosen.nvml.value - least.nvml.value) / 2**30
    return f"; against r {least.r} the model expects {slower:.1%} less speed and {more:.2f} GiB more memory"


def _longest(asked: Asked, fit: Fit, backend: str, r: int) -> int:
    positions = asked.model.config.get("text_config", asked.model.config).get("max_position_embeddings")
    most = min(int(positions or LONGEST), LONGEST) // SEQUENCE_STEP

    def enough(steps: int) -> bool:
        return fits(asked.model_copy(update={"sequence": steps * SEQUENCE_STEP}), fit, backend, r)

    # Below 512 tokens Unsloth does not offload: memory falls there, so the search starts at 512.
    return _largest(enough, 512 // SEQUENCE_STEP, max(most, 512 // SEQUENCE_STEP)) * SEQUENCE_STEP


def _largest_batch(asked: Asked, fit: Fit, backend: str, r: int) -> int:
    return _largest(lambda n: fits(asked.model_copy(update={"batch": n}), fit, backend, r), 1, LARGEST_BATCH)


def _largest(fits: Callable[[int], bool], low: int, high: int) -> int:
    """The largest number from ``low`` to ``high`` that fits, by halving; 0 where ``low`` does not."""
    if not fits(low):
        return 0
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _notes(asked: Asked, fit: Fit, choices: Sequence[Choice]) -> list[str]:
    notes = [f"assumed of the model: {told}" for told in asked.model.shape.assumed]
    notes.append("every token is taken as labelled, and gradients are accumulated: the upper bound of memory")
    if not asked.gpu.bf16:
        notes.append(
            f"{asked.gpu.nvml_name} has no bf16: peftmark's cells cannot run there, and nothing was measured on such"
        )
    if asked.gpu.memory_from in ("nominal", "nvidia-smi"):
        notes.append(f"memory of {asked.gpu.name} is {asked.gpu.memory_from}: --gpu auto reads the card")
    listed = table().get(asked.gpu.name)
    if listed and abs(asked.gpu.memory_mib / listed.memory_mib - 1) > ANOTHER_CARD:
        notes.append(
            f"the table's {listed.nvml_name} has {listed.memory_mib} MiB and this one {asked.gpu.memory_mib}: "
            "another card of that name, whose bandwidth may differ, and with it its speed"
        )
    if beyond := sorted({told for c in choices for told in c.beyond if not told.startswith("r ")}):
        notes.append("beyond the records, so with wider intervals: " + "; ".join(beyond))
    if fit.gpus and asked.gpu.nvml_name not in fit.gpus:
        notes.append(f"records are from {', '.join(fit.gpus)}: speed is scaled to this GPU, not measured")
    return notes
