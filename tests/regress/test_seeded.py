"""Faults put into a copy of the installed Unsloth: each is found, at its level, and named. Minutes on a CPU."""

import shutil
from pathlib import Path

import pytest

from bench.regress import policy
from bench.regress.index import Index
from bench.regress.measure import Options, measure
from bench.regress.overlay import build
from bench.regress.reading import Release
from bench.regress.verdict import Comparison, compare
from kernels_check.loading import folder_of

pytestmark = [
    pytest.mark.slow, pytest.mark.timeout(1800),
    pytest.mark.skipif(folder_of("unsloth") is None, reason="needs an installed Unsloth"),
]  # fmt: skip
Fault = tuple[str, str, str]
WRONG_GRADIENT = ("kernels/swiglu.py", "(1.0 + e_row * (1.0 - se_row))", "(1.0 + e_row * (1.01 - se_row))")
LOSS_SCALE = ("models/llama.py", 'n_items = kwargs.get("num_items_in_batch", None)', "n_items = None")
DROPPED = ("models/llama.py", "            for module in target_modules:\n                try:",
           "            for module in [m for m in target_modules if m != 'k_proj']:\n                try:")  # fmt: skip
SWITCHED_OFF = (
    "kernels/rms_layernorm.py",
    "    W: torch.Tensor = layernorm.weight\n    eps: float = (\n",
    "    W: torch.Tensor = layernorm.weight\n    if not gemma:\n"
    "        wide = X.float()\n"
    "        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + layernorm.variance_epsilon)\n"
    "        return W * wide.to(X.dtype)\n    eps: float = (\n",
)


def copied(folder: Path, fault: Fault | None = None) -> Path:
    """A copy of Unsloth as it is installed, with one text exchanged."""
    for name in ("unsloth", "unsloth_zoo"):
        package = folder_of(name)
        assert package is not None
        for item in (package, *package.parent.glob(f"{name}-*.dist-info")):
            shutil.copytree(item, folder / item.name, ignore=shutil.ignore_patterns("__pycache__"))
    if fault:
        file, old, new = fault
        text = (folder / "unsloth" / file).read_text(encoding="utf-8")
        assert old in text, f"{file} has no {old!r}"
        (folder / "unsloth" / file).write_text(text.replace(old, new), encoding="utf-8")
    return folder


def release(folder: Path, options: Options) -> Release:
    return measure(build(str(folder), "unsloth", Index()), options)


def judged(tmp_path: Path, fault: Fault | None, options: Options) -> Comparison:
    sides = [copied(tmp_path / name, f) for name, f in (("good", None), ("seeded", fault))]
    return compare(release(sides[0], options), release(sides[1], options), policy.load())


def test_a_wrong_gradient_is_found_at_level_kernels(tmp_path: Path) -> None:
    found = judged(tmp_path, WRONG_GRADIENT, Options(levels=("kernels",), kernels="swiglu"))
    assert found.exit_code == 1 and {m.name.split("/")[1] for m in found.failed} == {"swiglu"}
    assert all("tolerances" in m.candidate for m in found.failed)


def test_the_same_code_repackaged_passes(tmp_path: Path) -> None:
    found = judged(tmp_path, None, Options(levels=("kernels",), kernels="swiglu"))
    assert found.exit_code == 0 and not found.count("inconclusive") and not found.count("improved")


@pytest.fixture(scope="module")
def good_model(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return release(copied(tmp_path_factory.mktemp("unsloth") / "good"), Options(levels=("model",)))


@pytest.mark.parametrize(("fault", "names", "said"), [
    (LOSS_SCALE, {"model/trainer/accumulation 2", "model/trainer/accumulation 4", "model/padding"},
     "of the whole batch"),
    (DROPPED, {"model/target modules", "model/trained parameters"}, "no adapter on k_proj"),
    (SWITCHED_OFF, {"model/launched/llama/float32"}, "not launched: _rms_layernorm_forward"),
    (None, set(), ""),
])  # fmt: skip
def test_faults_of_the_model_are_found_and_named(
    tmp_path: Path, good_model: Release, fault: Fault | None, names: set[str], said: str
) -> None:
    assert not [r.name for r in good_model.readings if r.state == "bad"]
    found = compare(good_model, release(copied(tmp_path / "seeded", fault), Options(levels=("model",))), policy.load())
    assert names <= {metric.name for metric in found.failed}
    assert found.exit_code == (1 if fault else 0)
    assert any(said in metric.candidate for metric in found.failed) or not fault
