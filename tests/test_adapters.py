"""The initial adapter: one file, whoever loads it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bench import adapters
from bench.errors import AuditError


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PEFTMARK_CACHE", str(tmp_path))
    return tmp_path


class Layer(nn.Module):
    """One adapted layer with PEFT's parameter names."""

    def __init__(self, inputs: int, outputs: int, r: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.base_layer = nn.Linear(inputs, outputs, bias=False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(inputs, r, bias=False, dtype=dtype)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(r, outputs, bias=False, dtype=dtype)})


def model(r: int = 16, dtype: torch.dtype = torch.float32, names: tuple[str, ...] = ("q_proj", "v_proj")) -> nn.Module:
    """Named as PEFT names it: base_model.model.<layer>.lora_A.default.weight."""
    inner = nn.ModuleDict({name: Layer(400, 300, r, dtype) for name in names})
    return nn.ModuleDict({"base_model": nn.ModuleDict({"model": inner})})


def weights(made: nn.Module, kind: str) -> list[Any]:
    return [p.detach() for name, p in made.named_parameters() if f"lora_{kind}" in name]


def test_a_is_drawn_as_peft_draws_it_and_b_is_zero() -> None:
    made = model()
    base = [p.clone() for n, p in made.named_parameters() if "base_layer" in n]
    adapters.load_initial(made, seed=1)
    bound = 400**-0.5
    for a in weights(made, "A"):
        assert a.abs().max() <= bound and a.abs().max() > 0.99 * bound
        assert float(a.std()) == pytest.approx(bound / 3**0.5, rel=0.05)
        assert abs(float(a.mean())) < 0.05 * bound
    assert all(torch.count_nonzero(b) == 0 for b in weights(made, "B"))
    after = [p for n, p in made.named_parameters() if "base_layer" in n]
    assert all(torch.equal(x, y) for x, y in zip(base, after, strict=True)), "base weights are left alone"


def test_peft_draws_from_the_same_distribution() -> None:
    """Guards the claim of the module: kaiming uniform with a = sqrt(5) is U(-1/sqrt(in), 1/sqrt(in))."""
    from peft import LoraConfig, get_peft_model

    drawn = get_peft_model(nn.Sequential(nn.Linear(400, 300)), LoraConfig(r=16, target_modules=["0"]))
    (a,) = weights(drawn, "A")
    assert 0.99 * 400**-0.5 < a.abs().max() <= 400**-0.5
    assert float(a.std()) == pytest.approx(400**-0.5 / 3**0.5, rel=0.05)


def test_tensors_differ_from_each_other_and_repeat_by_seed() -> None:
    one, same, other = model(), model(), model()
    hashes = [adapters.load_initial(made, seed) for made, seed in ((one, 1), (same, 1), (other, 2))]
    assert hashes[0] == hashes[1] != hashes[2]
    first, second = weights(one, "A")
    assert not torch.equal(first, second)
    assert torch.equal(first, weights(same, "A")[0]) and not torch.equal(first, weights(other, "A")[0])


def test_neither_order_nor_wrappers_nor_the_global_generator_matter() -> None:
    straight, reverse = model(), model(names=("v_proj", "q_proj"))
    torch.manual_seed(1)
    first = adapters.load_initial(straight, seed=1)
    torch.manual_seed(2)
    assert adapters.load_initial(reverse, seed=1) == first
    bare = straight.base_model.model  # type: ignore[union-attr]
    assert isinstance(bare, nn.Module) and adapters.load_initial(bare, seed=1) == first


def test_rank_is_part_of_what_is_drawn() -> None:
    assert adapters.load_initial(model(r=8), seed=1) != adapters.load_initial(model(r=16), seed=1)


def test_both_sides_load_the_very_file(own_cache: Path) -> None:
    """The second model takes what lies in the file, even if the rule of drawing had changed meanwhile."""
    from safetensors.torch import load_file, save_file

    adapters.load_initial(model(), seed=1)
    (file,) = own_cache.rglob(adapters.FILE)
    save_file({name: torch.full_like(t, 0.25) for name, t in load_file(file).items()}, file)
    made = model()
    adapters.load_initial(made, seed=1)
    assert all(torch.all(p == 0.25) for kind in "AB" for p in weights(made, kind))


def test_the_hash_is_of_the_values_as_loaded() -> None:
    """A bf16 adapter holds other values than a float32 one: the hash tells, and does not depend on the storage."""
    narrow, wide = model(dtype=torch.bfloat16), model()
    narrow_hash = adapters.load_initial(narrow, seed=1)
    assert narrow_hash != adapters.load_initial(wide, seed=1)
    stored = {n.removeprefix("base_model.model."): p for n, p in narrow.named_parameters() if "lora_" in n}
    assert adapters.state_sha256({n: p.float() for n, p in stored.items()}) == narrow_hash
    changed = {n: p.detach().clone() for n, p in stored.items()}
    next(iter(changed.values()))[0, 0] += 1
    assert adapters.state_sha256(changed) != narrow_hash


def test_a_model_without_lora_is_an_audit_error() -> None:
    with pytest.raises(AuditError, match="no LoRA tensors"):
        adapters.load_initial(nn.Linear(2, 2), seed=1)


# The probe's adapter


def test_the_probes_adapter_has_a_small_b_and_values_that_every_dtype_holds(own_cache: Path) -> None:
    narrow, wide = model(dtype=torch.bfloat16), model()
    for made in (narrow, wide):
        adapters.load_probe(made, 1, {})
    for kind, bound in (("A", 400**-0.5), ("B", 0.1 * 16**-0.5)):
        for one, other in zip(weights(narrow, kind), weights(wide, kind), strict=True):
            assert torch.equal(one.float(), other)
            assert 0.98 * bound < other.abs().max() <= bound * (1 + 2**-8)
            assert torch.count_nonzero(other) > 0.99 * other.numel()


def test_the_probes_adapter_leaves_the_initial_one_alone() -> None:
    made = model()
    first = adapters.load_initial(made, seed=1)
    adapters.load_probe(made, 1, {})
    assert adapters.state_sha256(adapters.tensors(made)) != first
    assert adapters.load_initial(made, seed=1) == first


def test_tensors_that_are_not_drawn_come_back_as_they_were() -> None:
    made = model()
    layer = made.base_model.model["q_proj"]  # type: ignore[union-attr,index]
    layer.lora_magnitude_vector = nn.ParameterDict({"default": nn.Parameter(torch.arange(300.0))})
    before = adapters.undrawn(made)
    assert list(before) == ["q_proj.lora_magnitude_vector.default"]
    with torch.no_grad():
        layer.lora_magnitude_vector["default"].zero_()
    adapters.load_probe(made, 1, before)
    assert torch.equal(layer.lora_magnitude_vector["default"], torch.arange(300.0))
    assert before.keys() < adapters.tensors(made).keys()


def test_canonical_names_have_no_wrappers() -> None:
    name = "base_model.model.model.layers.0._orig_mod.mlp.up_proj.lora_A.default.weight"
    assert adapters.canonical(name) == "model.layers.0.mlp.up_proj.lora_A.default.weight"
