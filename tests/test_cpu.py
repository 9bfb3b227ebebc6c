"""What makes the run right and quick on a processor: exact NF4 gradients, bf16 products through float32."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import adapters, cpu
from bench.backends.hf_peft import HfPeft
from tests.backends.trial import LLAMA, Trial, on_cpu

BF16 = torch.bfloat16


@pytest.fixture
def plain_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor with AVX2 alone, and no GPU."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(BF16)


@pytest.fixture
def widened(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes of the tensors on which ``float()`` is called."""
    seen: list[torch.Size] = []
    original = torch.Tensor.float

    def spy(tensor: torch.Tensor) -> torch.Tensor:
        seen.append(tensor.shape)
        return original(tensor)

    monkeypatch.setattr(torch.Tensor, "float", spy)
    return seen


PRODUCTS: dict[str, Any] = {
    "mm": lambda c: torch.mm(c(draw(33, 500)), c(draw(500, 17))),
    "addmm": lambda c: torch.addmm(c(draw(17)), c(draw(33, 500)), c(draw(500, 17)), beta=0.5, alpha=2.0),
    "bmm": lambda c: torch.bmm(c(draw(3, 33, 500)), c(draw(3, 500, 17))),
    "baddbmm": lambda c: torch.baddbmm(c(draw(3, 33, 17)), c(draw(3, 33, 500)), c(draw(3, 500, 17))),
    "linear": lambda c: torch.nn.functional.linear(c(draw(2, 33, 500)), c(draw(17, 500)), c(draw(17))),
    "matmul": lambda c: c(draw(2, 4, 33, 500)) @ c(draw(2, 4, 500, 17)),
}


@pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS)
def test_a_bf16_product_is_the_float32_product_rounded_once(
    plain_cpu: None, widened: list[torch.Size], product: Any
) -> None:
    with cpu.bf16_matmul():
        got = product(lambda t: t)
    assert len(widened) >= 2, "torch's own bf16 product was used"
    assert got.dtype is BF16
    assert torch.equal(got, product(lambda t: t.float()).to(BF16))


def test_gradients_are_float32_products_too(plain_cpu: None) -> None:
    x, weight, upstream = draw(33, 500).requires_grad_(), draw(17, 500).requires_grad_(), draw(33, 17)
    with cpu.bf16_matmul():
        torch.nn.functional.linear(x, weight).backward(upstream)
    assert x.grad is not None and weight.grad is not None
    assert torch.equal(x.grad, (upstream.float() @ weight.detach().float()).to(BF16))
    assert torch.equal(weight.grad, (upstream.float().T @ x.detach().float()).to(BF16))


def test_only_bf16_products_inside_the_context_are_widened(plain_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = draw(33, 500), draw(500, 17)
    outside, full = torch.mm(x, y), torch.mm(x.float(), y.float())
    widened: list[torch.Size] = []
    original = torch.Tensor.float

    def watched(tensor: torch.Tensor) -> torch.Tensor:
        widened.append(tensor.shape)
        return original(tensor)

    monkeypatch.setattr(torch.Tensor, "float", watched)
    context = cpu.bf16_matmul()
    with context:
        torch.mm(x, y)
        assert widened == [x.shape, y.shape]
        assert torch.equal(torch.mm(original(x), original(y)), full)
        assert torch.equal(x + x, x * 2)
        assert len(widened) == 2
    assert torch.equal(torch.mm(x, y), outside)
    assert len(widened) == 2, "nothing is left behind"


@pytest.mark.parametrize(("capability", "gpu"), [("AVX512", False), ("AVX2", True)])
def test_it_stays_out_of_the_way_of_fast_hardware(monkeypatch: pytest.MonkeyPatch, capability: str, gpu: bool) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    assert isinstance(cpu.bf16_matmul(), nullcontext)


# NF4 gradients after a forward pass without gradients


def gradients(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """All LoRA gradients in name order, as one float32 vector; the model has just generated."""
    model.eval()
    with torch.no_grad():
        model(input_ids=ids)
    model.train()
    model(input_ids=ids, labels=ids).loss.backward()
    parts = {n: p.grad.float().flatten() for n, p in model.named_parameters() if p.requires_grad}
    return torch.cat([parts[name] for name in sorted(parts)])


def nf4_and_reference(root: Path) -> tuple[Any, Any]:
    """The tiny model in NF4 as on a processor with AVX512-BF16, and in float32 with the dequantised weights."""
    from bitsandbytes.functional import dequantize_4bit

    from bench.models.sources import resolve

    trial = Trial.create(root)
    whole_blocks = LLAMA | {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}  # repacking asks for them
    (root / "tiny" / "config.json").write_text(json.dumps(whole_blocks))
    cells = [trial.cell(precision=p, gradient_checkpointing="off") for p in ("nf4", "fp32")]
    quantised, plain = (HfPeft().load(cell, resolve(cell).folder) for cell in cells)
    known = {name: module for name, module in quantised.named_modules() if type(module).__name__ == "Linear4bit"}
    assert len(known) == 14
    for name, module in known.items():
        weight = dequantize_4bit(module.weight.data, module.weight.quant_state)
        plain.get_submodule(name).weight.data = weight.float()
        module.support_avx512bf16_for_cpu = True  # repacking needs no such processor, so the fault shows on any
    pair = [HfPeft().add_adapter(cell, model) for cell, model in zip(cells, (quantised, plain), strict=True)]
    for model in pair:
        adapters.load_initial(model, seed=1)
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:  # not zero, so that A gets gradients
                generator = torch.Generator().manual_seed(len(name))
                parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    return pair[0], pair[1]


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    on_cpu(monkeypatch, tmp_path)
    return nf4_and_reference(tmp_path)


IDS = torch.randint(3, 320, (2, 48), generator=torch.Generator().manual_seed(0))


def relative_error(model: Any, reference: Any) -> float:
    expected = gradients(reference, IDS)
    return float((gradients(model, IDS) - expected).norm() / expected.norm())


def test_nf4_gradients_stay_exact_after_an_evaluation(pair: tuple[Any, Any]) -> None:
    cpu.exact_nf4_gradients(pair[0])
    assert relative_error(*pair) < 0.03  # bf16 products


def test_without_the_guard_they_are_wrong(pair: tuple[Any, Any]) -> None:
    """If this fails, bitsandbytes has mended it and the guard can go."""
    assert relative_error(*pair) > 0.3
