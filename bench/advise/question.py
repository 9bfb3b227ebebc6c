"""The question that advice answers: one model on one GPU, and whether a setup of it fits there."""

from pathlib import Path
from typing import Any, Literal

from bench.advise.fit import Fit
from bench.advise.gpus import GpuSpec
from bench.advise.parts import MIB
from bench.advise.predict import Prediction, predict
from bench.advise.setup import Setup, setup_of
from bench.advise.shapes import Shape, shape_of
from bench.cell import Cell, Frozen
from bench.errors import InputError, nearest
from bench.models import catalogue
from bench.models.files import read_config

BACKENDS = ("hf-peft", "unsloth")
Verdict = Literal["fits", "tight", "no"]
"""fits: the interval's upper end is free on the GPU; no: its lower end is not; tight: what is free lies between."""


class Model(Frozen):
    """The model asked about."""

    name: str
    source: Literal["random", "hub"]
    """As in a suite: random weights where the configuration is known, else the hub."""
    config: dict[str, Any]
    shape: Shape


class Asked(Frozen):
    """One question."""

    model: Model
    gpu: GpuSpec
    precision: Literal["bf16", "nf4", "int8"] = "nf4"
    sequence: int = 2048
    batch: int = 2
    backends: tuple[str, ...] = BACKENDS
    reserve_mib: int = 0
    """GPU memory that something else uses: a desktop, another process."""

    @property
    def free_bytes(self) -> int:
        return (self.gpu.memory_mib - self.reserve_mib) * MIB


def find_model(name: str) -> Model:
    """The model of a catalogue name, hub id or folder; no network.

    InputError with the nearest catalogue name where its configuration is nowhere on this machine.
    """
    where = f"--model {name!r}"
    if known := catalogue.find(name):
        return Model(name=known.name, source="random", config=known.config, shape=shape_of(known.config, where))
    if (folder := Path(name).expanduser()).is_dir():
        config = read_config(folder, where)
        return Model(name=name, source="random", config=config, shape=shape_of(config, where))
    if name.count("/") == 1 and not name.startswith(("/", ".", "~")):
        from bench.models.sources import config_for

        if cached := config_for(Cell(model=name)):
            return Model(name=name, source="hub", config=cached, shape=shape_of(cached, where))
        raise InputError(where, "not in the catalogue, and its config.json is not in the local hub cache",
                         "give a folder that holds its config.json")  # fmt: skip
    raise InputError(where, "neither a catalogue name, a folder nor a hub id",
                     nearest(name.lower(), list(catalogue.catalogue())))  # fmt: skip


def cell(asked: Asked, backend: str, r: int, **changes: Any) -> Cell:
    """The cell that would be run: full rows, the settings of the committed speed records, three steps."""
    fields = dict(
        model=asked.model.name, source=asked.model.source, backend=backend, precision=asked.precision, r=r,
        task="gsm-symbolic", max_length=asked.sequence, packing="wrapped", padding_free="off",
        batch_size=asked.batch, gradient_accumulation_steps=4, max_steps=3, untimed_steps=2, warmup_steps=1,
        optimizer="adamw_8bit",
    )  # fmt: skip
    return Cell.model_validate(fields | changes)


def setup_for(asked: Asked, backend: str, r: int) -> Setup:
    return setup_of(cell(asked, backend, r))


def predict_for(asked: Asked, fit: Fit, backend: str, r: int) -> Prediction:
    return predict(fit, asked.model.shape, setup_for(asked, backend, r), asked.gpu.nvml_name)


def verdict(asked: Asked, made: Prediction) -> Verdict:
    if made.needed_bytes <= asked.free_bytes:
        return "fits"
    return "tight" if max(made.peaks["nvml_process"].low, made.loading_bytes) <= asked.free_bytes else "no"


def fits(asked: Asked, fit: Fit, backend: str, r: int) -> bool:
    return verdict(asked, predict_for(asked, fit, backend, r)) == "fits"
