"""The families: complete, right on the real packages, and able to see faults."""

import importlib.util
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels_check.check import check
from kernels_check.families import FAMILIES, NO_CASE

MISSING = [name for name in ("triton", "unsloth", "unsloth_zoo") if not importlib.util.find_spec(name)]
installed = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
QUICK = ["fast_lora", "rms_layernorm_options", "float_weights", "rope_decoding", "int4_packed"]


MLPS = {
    "geglu exact", "geglu approximate",
    *(f"swiglu{kind}" for kind in ("", ", float32 update", ", one token", ", expanded gradient", ", NF4")),
}  # fmt: skip


def test_every_family_has_a_module_with_unlike_cases_of_its_name() -> None:
    for family in FAMILIES:
        cases = importlib.import_module(f"kernels_check.families.{family}").cases()
        assert {case.family for case in cases} == {family}
        assert len({case.name for case in cases}) == len(cases) > 2, family
    assert not set(FAMILIES) & set(NO_CASE)


FAULTS = {
    "fast_lora.py": (
        "d_upB.addmm_(upA.t() @ Xd.t(), df, alpha = upS",
        "d_upB.addmm_(upA.t() @ Xd.t(), df, alpha = gateS",
    ),
    "fused_add_rms_layernorm.py": ("variance + tl.full((), eps, tl.float32)", "variance"),
    "nvfp4.py": (
        "tl.join(_e2m1_to_float(byte & 15), _e2m1_to_float(byte >> 4)), (BLOCK_R",
        "tl.join(_e2m1_to_float(byte >> 4), _e2m1_to_float(byte & 15)), (BLOCK_R",
    ),
    "fp8.py": ("tl.store(y_ptr + offs, y, mask = mask)", "tl.store(y_ptr + offs, y, mask = mask & (offs_n < N - 1))"),
    "int4_packed.py": ("tl.load(Z + (rn // PF)[:, None]", "tl.load(Z + ((rn + 1) // PF)[:, None]"),
}
"""Another module's scaling; no eps; the halves of a byte swapped; the last column not stored; the next row's zero
point."""


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of Unsloth with one fault in each file of FAULTS."""
    spec = importlib.util.find_spec("unsloth")
    assert spec is not None and spec.submodule_search_locations
    folder = tmp_path_factory.mktemp("faulty")
    ignored = shutil.ignore_patterns("__pycache__", "studio")
    shutil.copytree(next(iter(spec.submodule_search_locations)), folder / "unsloth", ignore=ignored)
    for file, (right, wrong) in FAULTS.items():
        path = folder / "unsloth" / "kernels" / file
        source = path.read_text()
        assert source.count(right) == 1, file
        path.write_text(source.replace(right, wrong))
    return folder


@installed
@given(seed=st.integers(0, 2**31))
@settings(max_examples=1, deadline=None)
def test_one_fault_a_family_fails_where_it_is_and_all_else_passes(faulty: Path, seed: int) -> None:
    record = check("cpu", unsloth=faulty, only=QUICK, seed=seed)
    assert {item.family for item in record.unavailable} == set(NO_CASE)
    assert {e.status for e in record.entries} == {"passed", "failed"}
    failed = {f"{e.family}/{e.case}": e.reason or "" for e in record.entries if e.status == "failed"}
    lora = {name: reason for name, reason in failed.items() if name.startswith("fast_lora/")}
    assert set(lora) == {f"fast_lora/{name}" for name in MLPS}
    assert all(reason.startswith("dB_up: ") and ";" not in reason for reason in lora.values())
    assert "rms_layernorm_options/sum and norm, tiny" in failed
    assert {"float_weights/fp8, ends within a block", "float_weights/nvfp4", "int4_packed/zero points"} <= set(failed)
    unharmed = ("rope_decoding", "rms_layernorm_options/llama", "rms_layernorm_options/gemma", "int4_packed/symmetric")
    assert not [name for name in failed if name.startswith(unharmed)]
