"""The table of GPUs, and rates scaled between them."""

import pytest

from bench.advise.gpus import find, table
from bench.advise.rank import RankAccuracy, RankScore, nearest
from bench.advise.setup import Setup
from bench.advise.shapes import shape_of
from bench.advise.speed import BASE_FACTOR, predict_rate, seconds_per_token
from bench.errors import InputError
from bench.flops import PEAK_BF16_FLOPS
from bench.models.catalogue import catalogue
from tests.advise.made import fit, records

LLAMA = shape_of(catalogue()["llama-3.1-8b"].config)
SETUP = Setup("unsloth", "nf4", 16, 2, 2048, "offload")


def test_the_table_is_large_whole_and_agrees_with_the_one_for_mfu() -> None:
    gpus = table()
    assert len(gpus) >= 25 and {"t4", "rtx-3060-12gb", "rtx-5090", "l40s", "a100-40gb", "h200", "b200"} <= set(gpus)
    assert len({gpu.nvml_name for gpu in gpus.values()}) == len(gpus)
    for gpu in gpus.values():
        assert gpu.source and 8000 < gpu.memory_mib < 200_000 and 200 < gpu.bandwidth_gb_s < 10_000
        if known := PEAK_BF16_FLOPS.get(gpu.nvml_name):
            assert gpu.tensor_tflops == pytest.approx(known / 1e12, rel=0.005), gpu.name
    measured = records()[0].record.environment.gpus[0]
    assert gpus["h100"].memory_mib == measured.vram_bytes // 2**20 and gpus["h100"].nvml_name == measured.name
    assert not gpus["t4"].bf16 and gpus["rtx-3060-12gb"].bf16


def test_names_are_forgiving_and_a_wrong_one_names_the_nearest() -> None:
    assert find("RTX 4090") is find("rtx-4090") is find("NVIDIA GeForce RTX 4090")
    with pytest.raises(InputError, match="--gpu 'rtx-4091'.*\n.*did you mean 'rtx-4090'"):
        find("rtx-4091")


def test_a_measured_cell_is_given_back_with_the_least_interval() -> None:
    point = next(
        p for p in fit().speeds if p.model == "llama-3.1-8b" and p.backend == "unsloth" and p.precision == "nf4"
    )
    rate = predict_rate(fit().speeds, LLAMA, SETUP, find("h100"))
    assert rate and rate.from_record == point.record_id
    assert rate.value == pytest.approx(point.tokens_per_s, rel=1e-6)
    assert rate.high / rate.value == pytest.approx(BASE_FACTOR)


def test_slower_gpus_and_larger_models_are_slower_and_less_certain() -> None:
    here, there = (predict_rate(fit().speeds, LLAMA, SETUP, find(name)) for name in ("h100", "rtx-3090"))
    large = predict_rate(fit().speeds, shape_of(catalogue()["qwen2.5-14b"].config), SETUP, find("h100"))
    assert here and there and large
    assert there.value < here.value and large.value < here.value
    assert there.high / there.low > here.high / here.low < large.high / large.low
    assert predict_rate([], LLAMA, SETUP, find("h100")) is None
    assert predict_rate(fit().speeds, LLAMA, SETUP.but(backend="hf-peft-no-upcast"), find("h100")) is None


def test_the_roofline_turns_with_the_batch() -> None:
    assert seconds_per_token(LLAMA, SETUP.but(batch=1, sequence=16), find("h100"))[1] == "bandwidth"
    assert seconds_per_token(LLAMA, SETUP.but(batch=8), find("t4"))[1] == "compute"


def ranks(**worse: float) -> RankAccuracy:
    scores = [
        RankScore(r=int(r[1:]), accuracy=0.5, difference=0, low=low, high=0, not_worse=low > -0.03, record_ids=[r])
        for r, low in worse.items()
    ]
    return RankAccuracy(
        model="m", model_type="llama", task="t", backend="unsloth", items=400, seeds=1, margin=0.03, ranks=scores
    )


def test_the_smallest_rank_within_the_margin_is_enough() -> None:
    assert ranks(r4=-0.031, r16=-0.029, r64=-0.001).enough == 16
    one = ranks(r4=-0.01, r16=-0.001)
    other = one.model_copy(update={"model": "x", "model_type": "qwen3", "backend": "hf-peft"})
    assert nearest([one, other], "x", "qwen3", "unsloth")[0] is other
    found, told = nearest([one, other], "z", "llama", "unsloth")
    assert found is one and "another model, since nothing nearer was measured" in told
    assert nearest([], "m", "llama", "unsloth")[0] is None


def test_accuracy_by_rank_comes_from_the_same_items_of_each_backend() -> None:
    found = fit().accuracy
    assert [(one.backend, [score.r for score in one.ranks]) for one in found] == [
        ("hf-peft", [4, 16, 64]), ("unsloth", [4, 16, 64]),
    ]  # fmt: skip
    for one in found:
        values = {i.record.cell.r: i.record.eval_after for i in records() if i.record.cell.backend == one.backend}
        for score in one.ranks:
            evaluated = values[score.r]
            assert evaluated and score.accuracy == pytest.approx(evaluated.value)
        best = max(one.ranks, key=lambda score: score.accuracy)
        assert best.not_worse and best.difference == 0
