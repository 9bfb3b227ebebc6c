"""The experiments on a tiny Llama, and what their records say; a broken merge or switch is found."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench.claims import experiment, readings
from bench.claims.claim import catalogue
from bench.claims.experiment import KINDS, ExperimentRecord, Found, Kind
from bench.claims.experiments import adapter_size, merge, prompt_format, switch, training_state
from bench.claims.verdict import Evidence, verdicts
from bench.errors import InputError, PeftmarkError
from tests.synthetic import environment
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings that name a tiny model in a local folder."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return {"model": str(folder), "source": "local", "precision": "fp32", "r": 4}


def found(name: str, processes: list[dict[str, Any]], folder: Path = Path(), **settings: Any) -> Found:
    record = ExperimentRecord(
        id=f"1-{name}", experiment=name, settings={"model": "tiny"} | settings, environment=environment(gpu=None),
        device="cpu", started_at="2026-01-01T00:00:00Z", processes=processes,
    )  # fmt: skip
    return Found(record, folder)


def test_adapter_bytes_follow_the_formula_at_every_rank(tiny: dict[str, Any], tmp_path: Path) -> None:
    measured = adapter_size.measure(tiny | {"ranks": [1, 3], "formula_models": ["smollm2-135m-instruct"]}, tmp_path)
    first, second = measured["saved"]
    # two layers: q 32+32, k and v 32+16, o 32+32, gate and up 32+64, down 64+32
    assert first["tensor_bytes"] == 2 * (2 * 64 + 2 * 48 + 3 * 96) * 4
    assert second["tensor_bytes"] == 3 * first["tensor_bytes"]
    errors = readings.of_experiment("adapter-size", "formula_error", [found("adapter-size", [measured])])
    assert [m.value for m in errors] == [0, 0]
    (model,) = measured["formula"]
    assert model["adapters"][1]["fp32_bytes"] == 2 * model["adapters"][1]["bf16_bytes"]
    assert model["adapters"][0]["fp32_bytes"] == 1221120  # the committed record's saved file of this model at r 1


def test_merged_outputs_are_equal_and_the_adapter_matters(tiny: dict[str, Any], tmp_path: Path) -> None:
    measured = merge.measure(tiny | {"rows": 1, "tokens": 16, "rounds": 3}, tmp_path)
    assert measured["merged_distance"] < measured["tolerance"] < measured["adapter_distance"]
    assert {len(times) for times in measured["prefill_s"].values()} == {3}
    one = found("merge", [measured] * 3)
    assert all(m.value is not None and m.value < 1 for m in readings.of_experiment("merge", "merged_distance", [one]))
    latency = readings.of_experiment("merge", "merged_latency", [one])
    assert [m.label.split(",")[0] for m in latency] == ["prefill", "decode"]
    assert all(m.low is not None for m in latency)
    # each process is compared with itself: one that is twice as slow in all changes nothing
    slow = measured | {k: {n: [2 * t for t in ts] for n, ts in measured[k].items()} for k in ("prefill_s", "decode_s")}
    again = readings.of_experiment("merge", "merged_latency", [found("merge", [measured, slow, measured])])
    assert [m.value for m in again] == pytest.approx([m.value for m in latency])


def test_a_wrong_merge_is_refuted() -> None:
    wrong = {"merged_distance": 0.01, "adapter_distance": 0.02, "tolerance": 1e-4}
    evidence = Evidence(experiments=[found("merge", [wrong | {
        "prefill_s": {"base": [1.0], "merged": [1.0]}, "decode_s": {"base": [1.0], "merged": [1.0]},
    }])])  # fmt: skip
    (verdict,) = verdicts(evidence, [catalogue()["lora-merge-free"]])
    assert verdict.parts[0].verdict == "refuted"
    weak = wrong | {"adapter_distance": 1e-5}
    (measure,) = readings.of_experiment("merge", "merged_distance", [found("merge", [weak])])
    assert measure.why and "less than the tolerance" in measure.why


def test_switching_gives_the_outputs_of_a_fresh_load(tiny: dict[str, Any], tmp_path: Path) -> None:
    measured = switch.measure(tiny | {"adapters": 3, "rounds": 2, "tokens": 8}, tmp_path)
    assert max(measured["fresh_distance"]) < measured["tolerance"] < measured["least_between_adapters"]
    assert len(measured["switch_s"]) == 6
    stuck = measured | {"fresh_distance": [0.0, measured["least_between_adapters"], 0.0]}  # one adapter never came on
    (verdict,) = verdicts(Evidence(experiments=[found("switch", [stuck])]), [catalogue()["lora-modular"]])
    assert verdict.parts[0].verdict == "partly"


def test_full_fine_tuning_keeps_state_of_every_weight(tiny: dict[str, Any], tmp_path: Path) -> None:
    methods = training_state.measure(tiny | {"tokens": 8}, tmp_path)["methods"]
    weights = sum(p.numel() for p in tiny_model().parameters())
    assert methods["full"]["trainable_parameters"] == weights
    for one in methods.values():
        assert one["optimizer_state_bytes"] >= 8 * one["trainable_parameters"]  # two float32 moments
        assert one["gradient_bytes"] == 4 * one["trainable_parameters"]
    assert methods["full"]["checkpoint_bytes"] > methods["lora"]["checkpoint_bytes"]


def test_no_sum_is_both_trained_on_and_asked() -> None:
    train, asked = prompt_format.split({"largest_term": 9, "items": 20, "train_items": 60, "seed": 1})
    assert len(asked) == 20 and len(train) == 60
    keys = {frozenset(item.question.split(" =")[0].split(" + ")) for item in train}
    assert not keys & {frozenset(item.question.split(" =")[0].split(" + ")) for item in asked}


@pytest.mark.parametrize("reply, number", [
    ("Answer: 12", "12"), ("3 + 4 = 7.", "7"), ("1,024", "1024"), ("none", None), ("007", "7"),
])  # fmt: skip
def test_the_last_number_counts_for_both_prompts(reply: str, number: str | None) -> None:
    assert prompt_format.last_number(reply) == number


def test_the_prompt_experiment_asks_both_prompts_before_and_after(tiny: dict[str, Any], tmp_path: Path) -> None:
    settings = tiny | {"largest_term": 5, "items": 4, "train_items": 8, "steps": 2, "batch_size": 2, "seed": 1,
                       "learning_rate": 1e-3, "max_new_tokens": 3}  # fmt: skip
    measured = prompt_format.measure(settings, tmp_path)
    assert {len(losses) for losses in measured["losses"].values()} == {2}
    assert sorted(p.name for p in tmp_path.glob("*.jsonl")) == [
        "bare-after.jsonl", "bare-before.jsonl", "structured-after.jsonl", "structured-before.jsonl",
    ]  # fmt: skip
    (gain,) = readings.of_experiment("prompt-format", "gain_before", [found("prompt-format", [measured], tmp_path)])
    assert gain.low is not None and gain.high is not None and gain.low <= 0 <= gain.high


def test_a_record_is_written_whole_read_again_and_published(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = Kind("training-state", "", tiny | {"tokens": 8}, processes=1)
    record = experiment.run(kind, tmp_path / "experiments")
    (one,), bad = experiment.load(tmp_path)
    assert one.record == record and not bad and record.device == "cpu"
    target = experiment.publish(one, tmp_path / "results")
    assert target == tmp_path / "results/claims/training-state" / record.id
    assert experiment.publish(one, tmp_path / "results") == target
    (target / experiment.FILE).write_text("{}")
    again, bad = experiment.load(tmp_path / "results")
    assert not again and "not an experiment's record" in bad[0]


def test_a_process_that_fails_says_why_and_leaves_nothing(tiny: dict[str, Any], tmp_path: Path) -> None:
    kind = Kind("training-state", "", tiny | {"tokens": 8, "model": str(tmp_path / "none")})
    with pytest.raises(PeftmarkError, match="training-state.*no such folder"):
        experiment.run(kind, tmp_path / "experiments")
    assert not list((tmp_path / "experiments").rglob("*.json"))


def test_unknown_measure_names_the_known() -> None:
    with pytest.raises(InputError, match="merged_distance"):
        readings.of_experiment("merge", "distance", [])


def test_settings_are_plain_json() -> None:
    for kind in KINDS.values():
        assert json.loads(json.dumps(kind.settings)) == kind.settings
