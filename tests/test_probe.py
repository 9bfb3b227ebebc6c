"""The gradient probe: sketches that keep distances, gradients that are the real ones, and every parity fault seen."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import adapters, assemble, events, probe, training
from bench.backends.hf_peft import HfPeft
from bench.probe import BUCKETS, DISTANCE_ERROR, TensorDistance
from tests.backends.trial import LAYERS, Run, Trial, adapted_by, on_cpu

ROUNDING = 1e-5
"""Far above float32's rounding noise in so small a model (1e-6), far below every fault."""


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    return Trial.create(tmp_path_factory.mktemp("probe"))


@pytest.fixture(autouse=True)
def no_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fingerprint has its own tests."""
    monkeypatch.setattr(training, "_profile", lambda *args: {})


@pytest.fixture(scope="module")
def honest(trial: Trial) -> Run:
    run = trial.run(trial.cell())
    assert run.record.status == "ok" and run.record.probe, run.record.message
    return run


def distances(one: Run, other: Run) -> list[TensorDistance]:
    assert one.record.probe and other.record.probe, (one.record.message, other.record.message)
    return probe.compare(one.folder / probe.FILE, other.folder / probe.FILE)


def furthest(one: Run, other: Run) -> float:
    return max(d.relative_distance or 0 for d in distances(one, other))


# Sketches


def test_distances_between_sketches_are_those_between_gradients() -> None:
    """Unbiased squares, and the stated standard error, for tensors smaller and larger than the sketch."""
    torch.manual_seed(0)
    deviations, squares = [], []
    for trial_number in range(600):
        size = (40, 512, 5000)[trial_number % 3]
        a = torch.randn(size) * torch.randn(size).abs() ** 3  # heavy-tailed, as gradients are
        b = a + 10.0 ** -(trial_number % 7) * torch.randn(size)
        name = f"tensor {trial_number}"
        estimate = float((probe.sketch(name, a.double()).double() - probe.sketch(name, b.double()).double()).norm())
        exact = float((a.double() - b.double()).norm())
        deviations.append(estimate / exact - 1)
        squares.append((estimate / exact) ** 2 - 1)
    spread = math.sqrt(sum(d * d for d in deviations) / len(deviations))
    assert 0.5 * DISTANCE_ERROR < spread < 1.1 * DISTANCE_ERROR
    assert max(map(abs, deviations)) < 5 * DISTANCE_ERROR
    assert abs(sum(squares) / len(squares)) < 3 * 2 * DISTANCE_ERROR / math.sqrt(len(squares))


def test_a_sketch_depends_on_the_name_alone_and_is_linear() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(30, 40), torch.randn(30, 40)
    one = probe.sketch("x", a)
    torch.manual_seed(1)
    assert one.shape == (BUCKETS,) and one.dtype == torch.float32
    assert torch.equal(one, probe.sketch("x", a)) and not torch.equal(one, probe.sketch("y", a))
    assert torch.allclose(one + probe.sketch("x", b), probe.sketch("x", a + b), atol=1e-5)


def write(file: Path, **gradients: Any) -> Path:
    import json

    from safetensors.torch import save_file

    norms = {n: float(g.double().norm()) for n, g in gradients.items()}
    save_file(
        {n: probe.sketch(n, g) for n, g in gradients.items()},
        file,
        {"buckets": str(BUCKETS), "norms": json.dumps(norms)},
    )
    return file


def test_exact_cases_of_compare(tmp_path: Path) -> None:
    torch.manual_seed(0)
    g, zero = torch.randn(300), torch.zeros(300)
    a = write(tmp_path / "a", same=g, double=g, flipped=g, gone=g, lost=g, born=zero, none=zero)
    b = write(tmp_path / "b", same=g, double=2 * g, flipped=-g, new=g, lost=zero, born=g, none=zero)
    found = {d.name: d for d in probe.compare(a, b)}
    assert list(found) == sorted(found)
    assert found["same"] == TensorDistance("same", 1.0, 0.0, 1.0)
    assert found["none"] == TensorDistance("none", 1.0, 0.0, 1.0)
    assert found["lost"] == TensorDistance("lost", 0.0, 1.0, 0.0)
    assert found["born"] == TensorDistance("born", 0.0, math.inf, math.inf)
    assert (found["gone"], found["new"]) == (
        TensorDistance("gone", missing_in="b"),
        TensorDistance("new", missing_in="a"),
    )
    assert found["double"].norm_ratio == pytest.approx(2)
    assert found["double"].relative_distance == pytest.approx(1, rel=4 * DISTANCE_ERROR)
    assert found["flipped"].relative_distance == pytest.approx(2, rel=4 * DISTANCE_ERROR)
    assert found["flipped"].cosine == pytest.approx(-1, abs=16 * DISTANCE_ERROR)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.ones(3)}, tmp_path / "other")
    with pytest.raises(ValueError, match="other: no gradient sketches of 512 buckets"):
        probe.compare(tmp_path / "other", tmp_path / "other")


@pytest.mark.parametrize(
    ("lengths", "kept"), [([50, 60], [50, 60]), ([100, 60], [68, 60]), ([100, 200], [128]), ([10, 100, 28], [100, 28])]
)
def test_packed_rows_keep_their_last_tokens(lengths: list[int], kept: list[int]) -> None:
    import datasets

    ids = list(range(sum(lengths)))
    rows = datasets.Dataset.from_list([{"input_ids": ids, "labels": ids, "seq_lengths": lengths}])
    (row,) = probe._small(rows)
    assert row == {"input_ids": ids[-128:], "labels": ids[-128:], "seq_lengths": kept}


# Real gradients


def test_the_gradients_are_those_of_the_plain_loss(trial: Trial, honest: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same adapter and tokens through autograd, without a trainer, a collator or checkpointing."""
    on_cpu(monkeypatch, trial.root)
    from transformers import AutoTokenizer

    from bench.models.sources import resolve
    from bench.stream import tokenise
    from bench.tasks import materialise

    cell = trial.cell()
    folder = resolve(cell).folder
    files = materialise(cell, offline=True, base=trial.root)
    rows = tokenise(files, AutoTokenizer.from_pretrained(folder), cell).select(range(2))
    model = HfPeft().add_adapter(cell, HfPeft().load(cell, folder))
    adapters.load_probe(model, cell.seed, {})
    total, count = torch.zeros(()), 0
    for row in rows:
        ids, labels = torch.tensor([row["input_ids"][-128:]]), torch.tensor(row["labels"][-128:])[1:]
        logits = model(input_ids=ids).logits[0, :-1]
        total = total + torch.nn.functional.cross_entropy(logits, labels, ignore_index=-100, reduction="sum")
        count += int((labels != -100).sum())
    (total / count).backward()
    plain = {n: p.grad for n, p in adapters.tensors(model).items()}
    assert len(plain) == 14 * LAYERS and all(g is not None and g.norm() > 0 for g in plain.values())
    for distance in probe.compare(honest.folder / probe.FILE, write(trial.root / "plain", **plain)):
        assert distance.relative_distance is not None and distance.relative_distance < ROUNDING, distance
        assert distance.norm_ratio == pytest.approx(1, abs=ROUNDING)
    fact = honest.record.probe
    assert fact and fact.loss == pytest.approx(float(total.detach() / count), rel=1e-6)
    assert (fact.tensors, fact.rows, fact.tokens) == (len(plain), 2, sum(min(128, len(r["input_ids"])) for r in rows))


def test_an_honest_pair_has_no_distance(trial: Trial, honest: Run) -> None:
    assert furthest(honest, trial.run(trial.cell())) == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"gradient_accumulation_steps": 3},
        {"learning_rate": 0.05, "max_steps": 4},
        {"gradient_checkpointing": "off"},
        {"padding_free": "on"},
        {"attention": "eager"},
    ],
    ids=str,
)
def test_what_does_not_change_the_function_does_not_change_the_gradients(
    trial: Trial, honest: Run, fields: dict[str, Any]
) -> None:
    """Neither the training before it nor another way of computing the same."""
    assert furthest(honest, trial.run(trial.cell(**fields))) < ROUNDING


def test_dora_is_probed_from_its_first_magnitudes(trial: Trial) -> None:
    short, far = (trial.run(trial.cell(method="dora", learning_rate=rate)) for rate in (1e-9, 0.05))
    assert len([d for d in distances(short, far) if "magnitude" in d.name]) == 7 * LAYERS
    assert furthest(short, far) < ROUNDING


def test_loss_scaling_is_undone(trial: Trial, honest: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = probe.measure

    def scaled(run: Any, *args: Any) -> Any:
        run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=65536.0)
        run.accelerator.scaler.scale(torch.ones(1))  # as training has done
        return real(run, *args)

    monkeypatch.setattr(probe, "measure", scaled)
    assert furthest(honest, trial.run(trial.cell())) < ROUNDING


def test_rounding_to_bf16_is_seen_at_its_size(trial: Trial, honest: Run) -> None:
    """The random weights are bf16 values either way, so the distance is that of computing in bf16."""
    u, roundings = 2.0**-8, 12 * LAYERS
    low = trial.run(trial.cell(precision="bf16"))
    assert u / 4 < furthest(honest, low) < 4 * u * math.sqrt(roundings)


def test_full_fine_tuning_has_no_probe(trial: Trial) -> None:
    run = trial.run(trial.cell(method="full"))
    assert run.record.status == "ok" and run.record.probe is None and run.record.phase("probe") is None
    assert not (run.folder / probe.FILE).exists()


def test_gradients_that_are_not_finite_are_a_missing_probe(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    real = adapters.load_probe

    def poisoned(model: Any, *args: Any) -> None:
        real(model, *args)
        with torch.no_grad():
            next(p for n, p in adapters.tensors(model).items() if "lora_B" in n).fill_(float("nan"))

    monkeypatch.setattr(adapters, "load_probe", poisoned)
    run = trial.run(trial.cell())
    assert run.record.status == "ok" and run.record.probe is None and run.record.adapter.saved_sha256
    (missing,) = [e for e in events.read(run.folder / assemble.JOURNAL) if e["event"] == "missing"]
    assert missing["name"] == "probe" and "not finite" in missing["message"]


# Faults


class Flip(torch.autograd.Function):
    """The identity, with a backward of the wrong sign."""

    @staticmethod
    def forward(ctx: Any, x: Any) -> Any:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:  # type: ignore[override]
        return -gradient


def test_doubled_scaling_is_seen_in_every_tensor(trial: Trial, honest: Run) -> None:
    def double(model: Any) -> None:
        for name, module in model.named_modules():
            if name.endswith("lora_B.default"):
                module.register_forward_hook(lambda module, args, output: 2 * output)

    fault = trial.run(trial.cell(), adapted_by(double))
    assert fault.record.status == "ok", "the audit reads the scaling that is written down"
    for distance in distances(honest, fault):
        assert distance.relative_distance and distance.relative_distance > 0.5, distance
        assert distance.norm_ratio == pytest.approx(2, rel=0.2)


def test_a_missing_target_module_is_named(trial: Trial, honest: Run) -> None:
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]
    found = distances(honest, trial.run(trial.cell(target_modules=targets)))
    missing = [d.name for d in found if d.missing_in == "b"]
    assert len(missing) == 2 * LAYERS and all("up_proj" in name for name in missing)
    assert max(d.relative_distance or 0 for d in found) > 1e-3, "and the others' gradients differ"


def test_dropout_on_one_side_is_seen(trial: Trial, honest: Run) -> None:
    def drop(model: Any) -> None:
        for name, module in model.named_modules():
            if name.endswith("lora_A.default"):
                module.register_forward_pre_hook(lambda m, args: (torch.nn.functional.dropout(args[0], 0.1),))

    assert min(d.relative_distance or 0 for d in distances(honest, trial.run(trial.cell(), adapted_by(drop)))) > 0.05


def test_another_seed_is_seen(trial: Trial, honest: Run) -> None:
    found = distances(honest, trial.run(trial.cell(seed=1)))
    assert all(d.relative_distance and d.relative_distance > 0.5 for d in found)


def test_a_flipped_backward_is_seen_where_it_is(trial: Trial, honest: Run) -> None:
    """The loss is right; the gradients of that module have the wrong sign, those after it are right."""

    def flip(model: Any) -> None:
        where = next(m for n, m in model.named_modules() if n.endswith("layers.1.mlp.down_proj"))
        where.register_forward_hook(lambda module, args, output: Flip.apply(output))

    fault = trial.run(trial.cell(), adapted_by(flip))
    assert fault.record.status == "ok" and fault.record.probe and honest.record.probe
    assert fault.record.probe.loss == honest.record.probe.loss
    found = {d.name: d for d in distances(honest, fault)}
    for kind in "AB":
        distance = found[f"model.layers.1.mlp.down_proj.lora_{kind}.default.weight"]
        assert distance.relative_distance == pytest.approx(2, rel=4 * DISTANCE_ERROR)
        assert distance.norm_ratio == pytest.approx(1, abs=ROUNDING)
    assert all((d.relative_distance or 0) > 1e-3 for n, d in found.items() if "layers.0" in n), "all before it are off"
