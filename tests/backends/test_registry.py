"""Backends by name, found without loading what they run on."""

import subprocess
import sys

import pytest

from bench import backends
from bench.cell import Cell
from bench.errors import InputError
from tests.synthetic import environment


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError) as raised:
        backends.get("unslot")
    assert raised.value.where == "backend 'unslot'"
    assert raised.value.mend == "did you mean 'unsloth'?"
    with pytest.raises(InputError, match="known: hf-peft, .*, unsloth, fake"):
        backends.get("xyz")


def test_every_backend_answers_to_its_name() -> None:
    assert backends.names() == [
        "hf-peft", "hf-peft-no-upcast", "hf-peft+liger", "hf-peft+compile", "hf-peft+compile-blocks",
        "hf-peft-no-upcast+liger", "hf-peft+liger+compile", "hf-peft-no-upcast+liger+compile",
        "hf-peft+liger+compile-blocks", "hf-peft-no-upcast+liger+compile-blocks", "unsloth", "fake",
    ]  # fmt: skip
    for name in backends.names():
        made = backends.get(name)
        assert callable(made.run) and callable(made.unsupported)


def test_the_registry_asks_the_backend_of_the_cell() -> None:
    cell = Cell(model="m", backend="unsloth")
    assert backends.unsupported(cell, environment(gpu=None)) == "needs an NVIDIA GPU"
    assert backends.unsupported(cell.model_copy(update={"backend": "hf-peft"}), environment(gpu=None)) is None


def test_planning_needs_no_heavy_library() -> None:
    code = """
import sys
from bench import backends
from bench.cell import Cell
from tests.synthetic import environment
for name in backends.names():
    backends.get(name).unsupported(Cell(model="m", backend=name), environment())
heavy = {"torch", "transformers", "trl", "peft", "bitsandbytes", "datasets", "unsloth", "accelerate"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
