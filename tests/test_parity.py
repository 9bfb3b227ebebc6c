"""The parity gate on real runs of a tiny Llama, honest and with every fault it is there for; and on records alone.

The runs are in float32, whose tolerances are tight, except where bf16 is said.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from bench import cpu, fingerprint, stream
from bench.parity import Check, Parity, gate
from bench.probe import DISTANCE_ERROR
from bench.record import AuditEntry, DataFacts, Health
from bench.rounding import ROUNDOFF, Rounding
from bench.store import Loaded, load
from tests.backends.trial import LAYERS, Trial, Unchecked, adapted_by
from tests.synthetic import environment, record

Runs = Callable[..., Loaded]
BUSY = Health(reasons=["1 other compute process(es) on the GPU while the cell ran"])
BROKEN = Health(reasons=["1 uncorrected ECC error(s) while the cell ran"], ecc_errors=1)
LAST_Q = f"model.layers.{LAYERS - 1}.self_attn.q_proj.lora_A.default.weight"


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    return Trial.create(tmp_path_factory.mktemp("parity"))


@pytest.fixture(scope="module")
def run(trial: Trial) -> Runs:
    """Runs a cell and insists that its own audit found nothing: what parity is to catch must get past it.

    Without the dispatch fingerprint, which takes half of the time and is not read here.
    """

    def once(backend: Any = None, **fields: Any) -> Loaded:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fingerprint, "measure", no_profiler)
            done = trial.run(trial.cell(**fields), backend)
        assert done.record.status == "ok", done.record.message
        assert done.record.probe is not None
        return Loaded(done.record, done.folder)

    return once


@pytest.fixture(scope="module")
def base(run: Runs) -> Loaded:
    return run()


@pytest.fixture(scope="module")
def other_seed(run: Runs) -> Loaded:
    return run(seed=1)


def no_profiler(*args: Any) -> None:
    raise RuntimeError("left out of this test")


def check(parity: Parity, name: str) -> Check:
    return next(c for c in parity.checks if c.name == name)


def failed(parity: Parity) -> set[str]:
    return {c.name for c in parity.checks if c.status == "failed"}


def double_lora(model: Any) -> None:
    """What a fused kernel does that applies the scaling twice: PEFT's own attribute stays right."""
    for name, module in model.named_modules():
        if name.endswith("lora_B.default"):
            module.register_forward_hook(lambda module, args, output: 2 * output)


def flip_backward(model: Any) -> None:
    """One projection whose forward is right and whose backward has the wrong sign."""
    import torch

    class Flipped(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            return -gradients[0]

    layer = model.get_submodule(f"base_model.model.model.layers.{LAYERS - 1}.self_attn.q_proj")
    layer.register_forward_hook(lambda module, args, output: Flipped.apply(output))


# ---- honest pairs ---------------------------------------------------------------------------------------------------


def test_an_honest_pair_is_ok(base: Loaded, other_seed: Loaded, run: Runs) -> None:
    parity = gate([base], [run(Unchecked())], [base, other_seed])
    assert parity.status == "ok", parity.text
    assert parity.text == "ok"
    assert {c.status for c in parity.checks} == {"ok"}
    assert check(parity, "gradients").baseline == base.record.probe.loss  # type: ignore[union-attr]
    assert Parity.model_validate_json(parity.model_dump_json()) == parity


def test_two_attention_implementations_in_bf16_differ_within_the_tolerance(run: Runs) -> None:
    sdpa, eager = run(precision="bf16", attention="sdpa"), run(precision="bf16", attention="eager")
    gradients = check(gate([sdpa], [eager]), "gradients")
    assert gradients.status == "ok", gradients.detail
    assert gradients.difference and gradients.tolerance and 1e-4 < gradients.difference < gradients.tolerance


# ---- faults ---------------------------------------------------------------------------------------------------------


def test_doubled_scaling(base: Loaded, run: Runs) -> None:
    """At step 1, B = 0: the loss cannot tell, the gradient of B doubles. The probe's adapter has a B."""
    parity = gate([base], [run(adapted_by(double_lora))])
    assert parity.status == "failed"
    assert failed(parity) == {"step-1 gradient norm", "gradients"}
    assert check(parity, "step-1 gradient norm").difference == pytest.approx(1, rel=1e-3)
    assert "lora_B" in check(parity, "gradients").detail and "the median of" in check(parity, "gradients").detail
    assert parity.text.startswith("failed: step-1 gradient norm (relative difference 1,")


def test_a_missing_target_module(base: Loaded, run: Runs) -> None:
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj"]
    parity = gate([base], [run(target_modules=names)])
    assert failed(parity) >= {"trainable parameters", "initial adapter", "target_modules", "gradients"}
    assert "down_proj" in check(parity, "gradients").detail and "missing in the candidate" in parity.text


def test_dropout_on_one_side(base: Loaded, run: Runs) -> None:
    parity = gate([base], [run(lora_dropout=0.1)])
    assert failed(parity) >= {"lora_dropout", "gradients"}
    assert (check(parity, "lora_dropout").baseline, check(parity, "lora_dropout").candidate) == ("0", "0.1")


def test_another_seed(base: Loaded, other_seed: Loaded) -> None:
    assert failed(gate([base], [other_seed])) >= {"token stream", "initial adapter", "weights", "gradients"}


def test_another_token_order(base: Loaded, run: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = stream.tokenise
    monkeypatch.setattr(stream, "tokenise", lambda *args: (rows := honest(*args)).select(range(len(rows))[::-1]))
    parity = gate([base], [run()])
    assert "token stream" in failed(parity)
    assert check(parity, "weights").status == check(parity, "initial adapter").status == "ok"


def test_a_flipped_sign_in_one_backward(base: Loaded, run: Runs) -> None:
    """Neither the loss nor the norm of the gradient can tell; the probe says which tensors and how."""
    parity = gate([base], [run(adapted_by(flip_backward))])
    assert "step-1 loss" not in failed(parity) and "gradients" in failed(parity)
    gradients = check(parity, "gradients")
    assert gradients.difference == pytest.approx(2, rel=4 * DISTANCE_ERROR)
    assert re.search(rf"{LAST_Q}: [12][.0-9]*, cosine -[01]\.\d+, norm ratio 1\.000", gradients.detail)


# ---- what could not be checked --------------------------------------------------------------------------------------


def test_without_another_seed_the_loss_curve_is_not_checked(base: Loaded) -> None:
    parity = gate([base], [base])
    assert parity.status == "not checked" and failed(parity) == set()
    curve = check(parity, "loss curve")
    assert curve.difference == 0 and "run the cell with seed 3408" in curve.detail
    assert parity.text == f"not checked: loss curve ({curve.detail})"


def test_a_changed_probe_file_is_not_compared(base: Loaded, tmp_path: Path) -> None:
    (tmp_path / "gradients.safetensors").write_bytes(b"not the file that the record names")
    gradients = check(gate([base], [Loaded(base.record, tmp_path)]), "gradients")
    assert gradients.status == "not checked" and base.record.id in gradients.detail


def test_committed_records_without_a_probe_are_not_checked_and_within_tolerance() -> None:
    found = [item for item in load(Path("results"))[0] if item.record.probe is None and item.record.status == "ok"]
    cells = {item.record.cell: item for item in found}
    pairs = [(item, cand) for cell, item in cells.items() if cell.backend == "hf-peft"
             if (cand := cells.get(cell.model_copy(update={"backend": "unsloth"})))]  # fmt: skip
    assert len(pairs) == 4, "suite h100-speed; Unsloth's SmolLM2 runs are withdrawn"
    for base, cand in pairs:
        parity = gate([base], [cand])
        assert parity.status == "not checked", parity.text
        assert check(parity, "gradients").status == check(parity, "lora_dropout").status == "not checked"
        assert check(parity, "step-1 loss").status == check(parity, "step-1 gradient norm").status == "ok"


# ---- rules, on made-up records --------------------------------------------------------------------------------------


def made(backend: str = "hf-peft", **fields: Any) -> Loaded:
    return Loaded(record(backend, **fields), Path("nowhere"))


def with_losses(losses: list[float], backend: str = "hf-peft", **fields: Any) -> Loaded:
    return made(backend, steps=record().steps.model_copy(update={"loss": losses}), **fields)


def test_every_run_of_a_side_must_agree() -> None:
    other = DataFacts(train_sha256="d" * 64, stream_sha256="6" * 64, stream_checked_in_forward=False)
    parity = gate([made(), made(serial=1)], [made("unsloth"), made("unsloth", serial=1, data=other)])
    assert failed(parity) == {"token stream", "stream seen by the model"}
    assert "unsloth" in check(parity, "stream seen by the model").detail


def test_an_unknown_fact_is_not_checked_but_two_that_differ_fail_all_the_same() -> None:
    silent = made("unsloth", serial=1, adapter={})
    assert check(gate([made()], [silent]), "initial adapter").status == "not checked"
    unlike_one = made("unsloth", adapter={"initial_sha256": "b" * 64})
    assert check(gate([made()], [unlike_one, silent]), "initial adapter").status == "failed"


def test_optional_readings_fail_where_they_differ_and_do_not_hold_up_the_verdict() -> None:
    def audited(recipe: str) -> Loaded:
        return made(audit=[AuditEntry(name="recipe", requested=None, effective=recipe, ok=True)])

    assert check(gate([audited("lr 1")], [audited("lr 2")]), "recipe").status == "failed"
    spelled = "OptimizerNames.ADAMW_8BIT, lr 1 SchedulerType.LINEAR", "adamw_8bit, lr 1 linear"
    assert check(gate([audited(spelled[0])], [audited(spelled[1])]), "recipe").status == "ok"
    without = check(gate([audited("lr 1")], [made()]), "recipe")
    assert without.status == "not checked" and not without.required


def test_the_loss_curve_is_held_against_the_nearest_two_seeds() -> None:
    base = with_losses([2.0] * 6)
    near, far = with_losses([2.2] * 6, cell={"seed": 1}), with_losses([3.0] * 6, cell={"seed": 2})
    for loss, status in ((2.18, "ok"), (2.22, "failed")):
        curve = check(gate([base], [with_losses([loss] * 6, "unsloth")], [far, near]), "loss curve")
        assert curve.status == status and curve.tolerance == pytest.approx(math.log(1.1))
        assert curve.difference == pytest.approx(math.log(loss / 2))


def test_controls_of_another_cell_environment_or_outcome_do_not_count() -> None:
    losses = [2.5] * 6
    unfit = [
        with_losses(losses, cell={"seed": 1, "r": 8}), with_losses(losses, "unsloth", cell={"seed": 1}),
        with_losses(losses, cell={"seed": 1}, env=environment(torch="2.12.0")),
        with_losses(losses, cell={"seed": 1}, status="contaminated", health=BROKEN),
    ]  # fmt: skip
    assert check(gate([made()], [made("unsloth")], unfit), "loss curve").status == "not checked"


def test_a_contaminated_run_with_another_seed_is_fit_for_the_loss_curve() -> None:
    losses = [2.0, 1.9, 1.8]
    other = with_losses([2.4, 2.3, 2.2], cell={"seed": 1}, status="contaminated", health=BUSY)
    curve = check(gate([with_losses(losses)], [with_losses([2.1, 2.0, 1.9], "unsloth")], [other]), "loss curve")
    assert curve.status == "ok" and "seeds 1 and 3407" in curve.detail


def test_full_fine_tuning_has_no_adapter_to_compare() -> None:
    names = {c.name for c in gate([made(cell={"method": "full"})], [made("unsloth", cell={"method": "full"})]).checks}
    assert not names & {"initial adapter", "gradients", "lora_rank", "lora_dropout", "target_modules"}
    assert "step-1 gradient norm" in names


def test_without_the_models_depth_there_is_no_tolerance() -> None:
    loss = check(gate([made()], [made("unsloth")], config_of=lambda record: None), "step-1 loss")
    assert loss.status == "not checked" and "depth" in loss.detail


def test_a_text_model_inside_another_has_its_depth() -> None:
    nested = {"text_config": {"num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336}}
    flat = nested["text_config"]
    losses = [check(gate([made()], [made()], config_of=lambda r, c=c: c), "step-1 loss") for c in (nested, flat)]  # type: ignore[misc]
    assert losses[0].status == "ok" and losses[0] == losses[1]


# ---- tolerances -----------------------------------------------------------------------------------------------------


def test_the_tolerance_is_that_of_the_formula() -> None:
    rounding = Rounding.of("bf16", layers=32, inner=14336)
    assert rounding.loss(6814) == pytest.approx(4 * 2**-8 * (12 * 32 + 4) ** 0.5 / 6814**0.5)
    assert rounding.tensor() == pytest.approx(4 * 2**-8 * (24 * 32 + 4) ** 0.5 * 1.125)
    assert rounding.median_tensor() == rounding.tensor() / 2
    assert rounding.gradient_norm(1) == pytest.approx(rounding.tensor() / 1.125)
    assert rounding.gradient_norm(10**9) == pytest.approx((rounding.tensor() / 1.125) ** 2 / 2, rel=1e-3)
    assert rounding.tensor() < 0.5, "a doubled scaling (distance 1) and a flipped sign (2) are beyond it at any depth"


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32")])
def test_errors_of_a_chain_of_roundings_grow_as_the_formula_says(precision: str, dtype: str) -> None:
    """Products of random numbers, rounded one after the other, against float64.

    A rounding to nearest errs by u / sqrt(3) / mantissa, root mean square; over log-uniform mantissas 0.42 u.
    """
    import torch

    steps, width, kind = 196, 4096, getattr(torch, dtype)
    logs = 0.4 * torch.rand(steps, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.2
    factors = logs.exp().to(kind)
    rounded, exact = torch.ones(width, dtype=kind), torch.ones(width, dtype=torch.float64)
    for factor in factors:
        rounded, exact = rounded * factor, exact * factor.double()
    errors = (rounded.double() - exact) / exact
    unit = ROUNDOFF[precision] * steps**0.5
    assert float(errors.square().mean().sqrt()) == pytest.approx(0.42 * unit, rel=0.2)
    assert float(errors.abs().max()) < 4 * unit


def lora_gradients(layers: int, dtype: Any) -> dict[str, Any]:
    """Gradients of every LoRA tensor of a random Llama, as the probe takes them: A and B both drawn.

    With weights of variance 1 / width every layer adds as much as it gets, so that its roundings count.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=64, intermediate_size=160, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.125,
    )  # fmt: skip
    adapter = LoraConfig(r=8, lora_alpha=8, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(LlamaForCausalLM(config).bfloat16().to(dtype), adapter).train()
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            bound = parameter.shape[1] ** -0.5 * (0.1 if "lora_B" in name else 1)
            parameter.data = torch.empty(parameter.shape).uniform_(-bound, bound).bfloat16().float()
    ids = torch.randint(0, 512, (2, 64))
    with cpu.bf16_matmul(), torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        model(input_ids=ids, labels=ids).loss.backward()
    return {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("layers", [2, 4])
def test_gradients_in_bf16_lie_as_far_from_float32_as_the_formula_says(layers: int) -> None:
    """The median tensor within u sqrt(R) of float32 (so two sides within 2) and not far below; each within 4."""
    import torch

    exact, rounded = lora_gradients(layers, torch.float32), lora_gradients(layers, torch.bfloat16)
    distances = [float((rounded[n] - g).norm() / g.norm()) for n, g in exact.items()]
    unit = ROUNDOFF["bf16"] * (24 * layers + 4) ** 0.5
    assert len(distances) == 14 * layers
    assert unit / 4 < median(distances) < unit
    assert max(distances) < 4 * unit
