"""The process of level model: the whole-model check, then the release against itself on the same tiny model.

``python -m bench.regress.levels.model_child FOLDER JOB ...``; FOLDER holds what ``kernels_check.whole_model reference``
wrote. One batch of four rows of unequal length is the yardstick. It must give the same loss and gradients when it is
accumulated in 2 or 4 micro-batches (through the trainer, and by calling the model), and when the rows are packed into
one. float32, with the tolerance of ``bench.rounding``.
"""

import json
import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from kernels_check import whole_model
from kernels_check.processes import forked
from kernels_check.whole_model_shapes import (
    ALPHA,
    IGNORED,
    INTERMEDIATE,
    LAYERS,
    RANK,
    TARGETS,
    VOCABULARY,
)

JOB = "llama,float32"
LENGTHS = (13, 5, 9, 3)
PADDING = 3
Gradients = dict[str, Any]


def main(arguments: list[str]) -> None:
    """Both parts; see the module's docstring."""
    folder, *jobs = arguments
    whole_model.main(["unsloth", folder, *jobs])
    if JOB in jobs:
        for _ in forked(_run, [Path(folder, JOB)]):
            pass


def _run(place: Path) -> None:
    """In the forked process: a part that raises is that part's failure."""
    readings: list[dict[str, Any]] = []
    try:
        tiny = Tiny(place)
    except Exception as error:
        readings = [{"name": "model/load", "state": "bad", "text": _said(error)}]
    else:
        readings = [{"name": "model/load", "state": "good"}, *tiny.adapter_readings()]
        for name, part in tiny.parts():
            try:
                readings.append({"name": name, **part()})
            except Exception as error:
                readings.append({"name": name, "state": "bad", "text": _said(error)})
    (place.parent / "readings.json").write_text(json.dumps(readings), encoding="utf-8")


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


class Tiny:
    """The tiny model with its adapter, and the batch that is cut in several ways."""

    def __init__(self, place: Path) -> None:
        import torch
        from safetensors.torch import load_file
        from unsloth import FastLanguageModel

        from bench.rounding import Rounding

        model, _ = FastLanguageModel.from_pretrained(
            model_name=str(place / "model"), max_seq_length=64, dtype=torch.float32, load_in_4bit=False,
            use_gradient_checkpointing=False, device_map={"": "cpu"}, fix_tokenizer=False,
        )  # fmt: skip
        self.model = FastLanguageModel.get_peft_model(
            model, r=RANK, lora_alpha=ALPHA, lora_dropout=0, bias="none", target_modules=TARGETS,
            use_gradient_checkpointing=False,
        )  # fmt: skip
        self.model.train()
        self.place = place
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.given = load_file(place / "adapter.safetensors")
        self.put_adapter()
        generator = torch.Generator().manual_seed(1)
        self.rows = [torch.randint(4, VOCABULARY, (length,), generator=generator) for length in LENGTHS]
        self.kept = sum(length - 1 for length in LENGTHS)
        """Tokens that have a loss: the first of a row has none."""
        rounding = Rounding.of("fp32", LAYERS, INTERMEDIATE)
        self.loss_tolerance, self.gradient_tolerance = rounding.loss(self.kept), rounding.tensor()
        self.whole: tuple[float, Gradients] | None = None

    def put_adapter(self) -> None:
        """Give every trained tensor the values of the reference's adapter, where that has it."""
        for name, parameter in self.trained.items():
            if name in self.given:
                parameter.data.copy_(self.given[name])
            parameter.grad = None

    def adapter_readings(self) -> list[dict[str, Any]]:
        """How many parameters are trained, and which target modules have no adapter."""
        missing = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in set(self.given) - set(self.trained)})
        count = sum(parameter.numel() for parameter in self.trained.values())
        text = f"no adapter on {', '.join(missing)}" if missing else ""
        return [
            {"name": "model/trained parameters", "values": [count], "exact": True, "better": "equal"},
            {"name": "model/target modules", "state": "bad" if missing else "good", "text": text},
        ]

    def parts(self) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
        """The comparisons, by name; the first makes the yardstick."""
        yield "model/one batch is finite", self.finite
        yield "model/padding", lambda: self.compared(*self.accumulated(((0,), (1,), (2,), (3,))))
        yield "model/ignored row", lambda: self.compared(*self.accumulated(((0, 1, 2, 3),), ignored_row=True))
        yield "model/packing", lambda: self.compared(*self.packed())
        for size in (4, 2, 1):
            k = len(self.rows) // size
            yield f"model/trainer/accumulation {k}", partial(self.by_trainer, size)

    def by_trainer(self, size: int) -> dict[str, Any]:
        """The batch in micro-batches of ``size``, through the trainer."""
        return self.compared(*self.trainer(size))

    def finite(self) -> dict[str, Any]:
        """The yardstick: the batch at once, called directly."""
        loss, gradients = self.whole = self.accumulated(((0, 1, 2, 3),))
        bad = [name for name, gradient in gradients.items() if not bool(gradient.isfinite().all())]
        if not math.isfinite(loss):
            bad.insert(0, f"loss {loss}")
        return {"state": "bad" if bad else "good", "text": f"not finite: {', '.join(bad[:3])}" if bad else ""}

    def compared(self, loss: float, gradients: Gradients) -> dict[str, Any]:
        """Loss and gradients against those of the whole batch, in tolerances."""
        if self.whole is None:
            raise RuntimeError("the whole batch could not be run")
        whole, expected = self.whole
        errors = {"loss": abs(loss / whole - 1) / self.loss_tolerance}
        for name, gradient in gradients.items():
            distance = float((gradient - expected[name]).norm() / expected[name].norm())
            errors[name] = distance / self.gradient_tolerance
        errors = {name: error if math.isfinite(error) else math.inf for name, error in errors.items()}
        worst = max(errors, key=errors.__getitem__)
        wrong = not errors[worst] <= 1
        text = f"loss {loss:.6g}, of the whole batch {whole:.6g}; {worst}: {errors[worst]:.3g} tolerances"
        return {"state": "bad" if wrong else "good", "values": [float(f"{min(errors[worst], 1e30):.3g}")],
                "unit": "tolerances", "text": text if wrong else ""}  # fmt: skip

    def batch(self, chosen: tuple[int, ...], ignored_row: bool = False) -> dict[str, Any]:
        """Rows padded on the right; ``ignored_row`` adds one whose labels are all ignored."""
        import torch

        width, rows = max(LENGTHS[i] for i in chosen), [self.rows[i] for i in chosen]
        made = {"input_ids": [], "labels": [], "attention_mask": []}  # type: dict[str, list[Any]]
        for row in rows + ([self.rows[1]] if ignored_row else []):
            pad = width - len(row)
            made["input_ids"].append(torch.nn.functional.pad(row, (0, pad), value=PADDING))
            made["labels"].append(torch.nn.functional.pad(row, (0, pad), value=IGNORED))
            made["attention_mask"].append(torch.nn.functional.pad(torch.ones_like(row), (0, pad)))
        if ignored_row:
            made["labels"][-1] = torch.full((width,), IGNORED)
        return {name: torch.stack(parts) for name, parts in made.items()}

    def accumulated(self, parts: tuple[tuple[int, ...], ...], ignored_row: bool = False) -> tuple[float, Gradients]:
        """Sum of the losses of micro-batches, each over the number of tokens of all, and its gradients."""
        import torch

        total, kept = 0.0, torch.tensor(self.kept)
        self.put_adapter()
        for chosen in parts:
            loss = self.model(**self.batch(chosen, ignored_row), num_items_in_batch=kept).loss
            loss.backward()
            total += float(loss)
        return total, self._gradients()

    def packed(self) -> tuple[float, Gradients]:
        """The rows in one, as Unsloth's padding-free collator passes them: positions start anew with every row."""
        import torch

        ids = torch.cat(self.rows)[None]
        labels, starts = ids.clone(), [sum(LENGTHS[:i]) for i in range(len(LENGTHS))]
        labels[0, starts] = IGNORED
        self.put_adapter()
        loss = self.model(
            input_ids=ids, labels=labels, position_ids=torch.cat([torch.arange(n) for n in LENGTHS])[None],
            packed_seq_lengths=torch.tensor(LENGTHS, dtype=torch.int32), num_items_in_batch=torch.tensor(self.kept),
        ).loss  # fmt: skip
        loss.backward()
        return float(loss), self._gradients()

    def trainer(self, size: int) -> tuple[float, Gradients]:
        """One step of transformers' Trainer as the release patches it: the loss that it logs, and the gradients before
        the optimizer's step."""
        import torch
        from transformers import Trainer, TrainerCallback, TrainingArguments

        gradients: Gradients = {}
        trained = self.trained

        class Before(TrainerCallback):
            def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
                gradients.update({name: p.grad.detach().clone() for name, p in trained.items()})

        class InOrder(Trainer):
            def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
                return torch.utils.data.SequentialSampler(range(len(LENGTHS)))

        settings = TrainingArguments(
            output_dir=str(self.place / "trainer"), per_device_train_batch_size=size, max_steps=1, learning_rate=0.0,
            gradient_accumulation_steps=len(self.rows) // size, optim="sgd", max_grad_norm=0, logging_steps=1,
            report_to=[], save_strategy="no", remove_unused_columns=False, use_cpu=True, dataloader_pin_memory=False,
        )  # fmt: skip
        self.put_adapter()
        trainer = InOrder(
            model=self.model, args=settings, train_dataset=[{"row": i} for i in range(len(self.rows))],
            data_collator=lambda items: self.batch(tuple(item["row"] for item in items)), callbacks=[Before()],
        )  # fmt: skip
        trainer.train()
        loss = next(float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)
        return loss, gradients

    def _gradients(self) -> Gradients:
        return {name: p.grad.detach().clone() for name, p in self.trained.items()}


if __name__ == "__main__":
    main(sys.argv[1:])
