"""The check on the real packages: skipped only where they are not installed."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from kernels_check import cli
from kernels_check.check import check

MISSING = [name for name in ("triton", "unsloth", "liger_kernel") if not importlib.util.find_spec(name)]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")


@given(seed=st.integers(0, 2**31))
@settings(max_examples=2, deadline=None)
def test_unsloth_and_liger_pass_on_a_cpu(seed: int) -> None:
    """Two quick families, by the command itself; the record is what it prints."""
    ran = CliRunner().invoke(cli.app, ["check", "--only", "swiglu", "--only", "geglu", "--seed", str(seed), "--json"])
    record = json.loads(ran.stdout)
    assert ran.exit_code == 0, record
    assert {e["candidate"] for e in record["entries"]} == {"unsloth", "liger"}
    assert {e["status"] for e in record["entries"]} == {"passed"}
    assert {e["dtype"] for e in record["entries"]} == {"float32", "float16", "bfloat16"}
    assert all(record["versions"].values()) and record["not_covered"] and record["unavailable"]


def test_another_copy_is_checked_in_place_of_the_installed_one(tmp_path: Path) -> None:
    """A copy with one fault: the gradient of the gate without its last term. The check must fail and name it."""
    spec = importlib.util.find_spec("unsloth")
    assert spec is not None and spec.submodule_search_locations
    copy = tmp_path / "faulty" / "unsloth"
    shutil.copytree(
        next(iter(spec.submodule_search_locations)), copy, ignore=shutil.ignore_patterns("__pycache__", "studio")
    )
    source = copy / "kernels" / "swiglu.py"
    right = "(1.0 + e_row * (1.0 - se_row))"
    assert source.read_text().count(right) == 1
    source.write_text(source.read_text().replace(right, "(1.0 + e_row * se_row)"))
    record = check("cpu", unsloth=tmp_path / "faulty", only=["swiglu"])
    assert record.unsloth_copy == "faulty"
    plain = [e for e in record.entries if e.case == "plain"]
    assert {(e.candidate, e.status) for e in plain} == {("unsloth", "failed"), ("liger", "passed")}
    assert all((e.reason or "").startswith("de: ") for e in plain if e.candidate == "unsloth")
