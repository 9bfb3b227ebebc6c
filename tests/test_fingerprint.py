"""The dispatch fingerprint: names without volatile parts, exact counts, differences, and what it leaves untouched."""

import json
from pathlib import Path
from typing import Any

import pytest

from bench import assemble, events, fingerprint
from bench.fingerprint import Changed, Launched
from tests.backends.trial import LAYERS, Run, Trial


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    return Trial.create(tmp_path_factory.mktemp("fingerprint"))


@pytest.fixture(scope="module")
def whole(trial: Trial) -> Run:
    return trial.run(trial.cell())


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("triton_poi_fused_add_mul_12", "triton_poi_fused_add_mul"),
        ("triton_red_fused__to_copy_mul_sum_3", "triton_red_fused__to_copy_mul_sum"),
        ("triton_per_fused_add_0_0d1d2d3de", "triton_per_fused_add"),
        ("_rms_layernorm_forward_0d1d2de3", "_rms_layernorm_forward_0d1d2de3"),
        ("_rms_layernorm_forward_0d1d2d3d4de", "_rms_layernorm_forward"),
        ("kernel_3f9a0c41d2b7e865", "kernel_*"),
        ("launch<Op at 0x7f03a4c51e20>", "launch<Op at *>"),
        ("graph_140283746592", "graph_*"),
    ],
)
def test_volatile_parts_are_taken_out(raw: str, plain: str) -> None:
    assert fingerprint.normalise(raw) == plain
    assert fingerprint.normalise(plain) == plain


@pytest.mark.parametrize(
    "name",
    [
        "nvjet_tst_160x128_64x4_1x2_h_bz_coopA_TNT",
        "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize64x64x64_warpgroupsize1x1x1_execute_segment_k_off_kernel",
        "ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_64x4_tn",
        "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>, std::array<char*, 1ul> >",
        "void kDequantizeBlockwise<__nv_bfloat16, 512, 64, 8, 2>(float*, unsigned char*, float*)",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "Memcpy HtoD (Pageable -> Device)",
    ],
)
def test_what_tells_kernels_apart_stays(name: str) -> None:
    """Tiles, dtypes and template arguments are the dispatch."""
    assert fingerprint.normalise(name) == name


def test_launches_are_counted_by_plain_name_and_sorted() -> None:
    launched = fingerprint.collect(
        [("b", 1.0), ("triton_poi_fused_add_1", 2.0), ("b", 3.5), ("triton_poi_fused_add_7", 4)]
    )
    assert launched == [
        Launched(name="b", count=2, total_us=4.5),
        Launched(name="triton_poi_fused_add", count=2, total_us=6),
    ]


def test_the_hash_is_of_names_and_counts_alone() -> None:
    one, slower = [Launched(name="a", count=2, total_us=1)], [Launched(name="a", count=2, total_us=9)]
    assert fingerprint.sha256(one) == fingerprint.sha256(slower)
    assert fingerprint.sha256(one) != fingerprint.sha256([Launched(name="a", count=3, total_us=1)])
    assert fingerprint.sha256(one) != fingerprint.sha256([Launched(name="b", count=2, total_us=1)])


def test_a_step_is_counted_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    x = torch.ones(4, 4)
    fact, _ = fingerprint.measure(lambda: [torch.mm(x, x) for _ in range(3)], tmp_path)
    kernels = json.loads((tmp_path / fingerprint.FILE).read_text())["kernels"]
    assert [k["count"] for k in kernels if k["name"] == "aten::mm"] == [3]
    assert (fact.kernels, fact.launches) == (len(kernels), sum(k["count"] for k in kernels))
    assert 0 < fact.device_s == pytest.approx(sum(k["total_us"] for k in kernels) / 1e6, abs=1e-8)


def test_an_operator_sent_on_by_a_dispatch_mode_counts_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class SendOn(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **kwargs or {})

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    x = torch.ones(4, 4)
    with SendOn():
        fingerprint.measure(lambda: [torch.mm(x, x) for _ in range(3)], tmp_path)
    kernels = json.loads((tmp_path / fingerprint.FILE).read_text())["kernels"]
    assert [k["count"] for k in kernels if k["name"] == "aten::mm"] == [3]


def test_copies_between_host_and_device_are_no_kernel_time(tmp_path: Path) -> None:
    """Unsloth moves activations to host memory and back while kernels run; those copies would count twice."""
    names = (
        "Memcpy HtoD (Pinned -> Device)",
        "Memcpy DtoH (Device -> Pageable)",
        "Memcpy DtoD (Device -> Device)",
        "gemm",
    )
    kernels = [{"name": n, "count": 1, "total_us": 10.0**i} for i, n in enumerate(names)]
    (tmp_path / "f.json").write_text(json.dumps({"kernels": kernels}))
    assert fingerprint.pass_s_of(tmp_path / "f.json") == pytest.approx(1100e-6)


def write(file: Path, **counts: int) -> Path:
    kernels = [{"name": n, "count": c, "total_us": 1.0} for n, c in counts.items()]
    file.write_text(json.dumps({"kernels": kernels}))
    return file


def test_the_difference_lists_lone_kernels_and_changed_counts(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", same=1, gone=2, more=3), write(tmp_path / "b", same=1, more=5, new=7)
    found = fingerprint.diff(a, b)
    assert [(k.name, k.count) for k in found.only_a] == [("gone", 2)]
    assert [(k.name, k.count) for k in found.only_b] == [("new", 7)]
    assert found.changed == [Changed(name="more", count_a=3, count_b=5)]
    same = fingerprint.diff(a, a)
    assert (same.only_a, same.only_b, same.changed) == ([], [], [])


@pytest.mark.parametrize(
    ("names", "dispatched", "kernel"),
    [
        ({"aten::scaled_dot_product_attention", "aten::_scaled_dot_product_flash_attention"}, "sdpa", "flash"),
        ({"aten::_scaled_dot_product_efficient_attention", "aten::_softmax"}, "sdpa", "memory-efficient"),
        ({"aten::scaled_dot_product_attention", "aten::_scaled_dot_product_attention_math"}, "sdpa", "math"),
        ({"flash_attn::_flash_attn_varlen_forward", "void flash::flash_fwd_kernel"}, "flash_attention_2", "flash"),
        ({"void flash::flash_fwd_kernel<Flash_fwd_kernel_traits>"}, "flash_attention_2", "flash"),
        ({"xformers_flash3::flash_fwd", "aten::mm"}, "xformers", "memory-efficient"),
        ({"aten::_softmax", "aten::bmm"}, "eager", "softmax"),
    ],
)
def test_attention_is_known_by_what_ran(names: set[str], dispatched: str, kernel: str) -> None:
    assert fingerprint.attention(names) == {"attention_dispatched": dispatched, "attention_kernel": kernel}


def test_attention_that_cannot_be_told_gives_no_reading() -> None:
    assert fingerprint.attention({"aten::mm", "aten::_log_softmax"}) == {}


# In a run


@pytest.mark.parametrize(("again", "told"), [(False, "1"), (True, "2")])
def test_attention_tells_how_often_a_block_is_computed(again: bool, told: str, tmp_path: Path) -> None:
    """Without the module's hooks, as in compiled blocks: three of them, computed again in the backward or not."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention
    from torch.utils.checkpoint import checkpoint

    x = torch.randn(1, 2, 16, 8, requires_grad=True)

    def step() -> None:
        y = x
        for _ in range(3):
            y = (
                checkpoint(scaled_dot_product_attention, y, y, y, use_reentrant=False)
                if again
                else scaled_dot_product_attention(y, y, y)
            )
        y.sum().backward()

    assert fingerprint.measure(step, tmp_path)[1]["forwards_per_layer"] == told


def test_a_run_has_a_fingerprint_of_its_own_kind_of_step(whole: Run) -> None:
    fact = whole.record.fingerprint
    assert fact and fact.file.path == fingerprint.FILE and fact.device == "cpu"
    kernels = json.loads((whole.folder / fingerprint.FILE).read_text())["kernels"]
    counts = {k["name"]: k["count"] for k in kernels}
    assert list(counts) == sorted(counts)
    assert (fact.kernels, fact.launches) == (len(counts), sum(counts.values()))
    forward = counts["aten::_scaled_dot_product_flash_attention_for_cpu"]
    backward = counts["aten::_scaled_dot_product_flash_attention_for_cpu_backward"]
    assert (forward, backward) == (2 * LAYERS, LAYERS), "checkpointing runs every forward twice"


def test_it_repeats_and_tells_another_attention(trial: Trial, whole: Run) -> None:
    again, eager = trial.run(trial.cell()), trial.run(trial.cell(attention="eager"))
    facts = [run.record.fingerprint for run in (whole, again, eager)]
    assert facts[0] and facts[1] and facts[2]
    assert facts[0].sha256 == facts[1].sha256 != facts[2].sha256
    found = fingerprint.diff(whole.folder / fingerprint.FILE, eager.folder / fingerprint.FILE)
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in {k.name for k in found.only_a}
    assert "aten::_softmax" in {k.name for k in found.only_b}


def test_the_pass_is_one_of_training_whatever_the_trainer_leaves(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unsloth's train() ends with the model set for inference, where nothing is checkpointed."""
    import trl

    from bench.backends.hf_peft import HfPeft

    train = trl.SFTTrainer.train

    def left_for_inference(self: Any) -> Any:
        done = train(self)
        self.model.gradient_checkpointing_disable()
        return done

    def for_training(self: Any, model: Any, cell: Any) -> None:
        model.gradient_checkpointing_enable({"use_reentrant": False})

    monkeypatch.setattr(trl.SFTTrainer, "train", left_for_inference)
    monkeypatch.setattr(HfPeft, "for_training", for_training)
    run = trial.run(trial.cell())
    assert run.record.status == "ok" and run.reading("forwards_per_layer") == "2"


def test_it_changes_neither_training_nor_the_saved_adapter(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench import probe, training

    def absent(*args: Any) -> Any:
        raise RuntimeError("left out")

    cell = trial.cell(lora_dropout=0.1, max_steps=3)
    with_both = trial.run(cell).record
    monkeypatch.setattr(training, "_profile", lambda *args: {})
    monkeypatch.setattr(probe, "measure", absent)
    without = trial.run(cell).record
    assert with_both.fingerprint and with_both.probe and not without.fingerprint and not without.probe
    assert with_both.adapter == without.adapter and with_both.data == without.data
    assert with_both.steps.loss == without.steps.loss and with_both.steps.grad_norm == without.steps.grad_norm


def test_the_random_state_and_the_gradients_are_put_back(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from bench import training

    real = training._profile

    def around(run: Any, *args: Any) -> dict[str, str]:
        before = torch.get_rng_state()
        found = real(run, *args)
        assert torch.equal(torch.get_rng_state(), before)
        assert all(p.grad is None for p in run.model.parameters())
        checked.append(True)
        return found

    checked: list[bool] = []
    monkeypatch.setattr(training, "_profile", around)
    assert trial.run(trial.cell(lora_dropout=0.1)).record.status == "ok" and checked


def test_a_failing_profiler_is_a_missing_meter(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("CUPTI is not there")

    monkeypatch.setattr(fingerprint, "measure", broken)
    run = trial.run(trial.cell())
    assert run.record.status == "ok" and run.record.fingerprint is None
    missing = [e for e in events.read(run.folder / assemble.JOURNAL) if e["event"] == "missing"]
    assert [(e["name"], e["message"]) for e in missing] == [("fingerprint", "RuntimeError: CUPTI is not there")]
    assert run.record.message == "fingerprint: not measured: RuntimeError: CUPTI is not there"


def test_the_profilers_own_list_names_the_operators_of_its_tree() -> None:
    import torch
    from torch.profiler import ProfilerActivity, profile

    x = torch.ones(4, 4, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU]) as p, torch.profiler.record_function("my::note"):
        torch.mm(x, x).sum().backward()
    kernels, operators = fingerprint._of_kineto(p.profiler.kineto_results.events())
    own = [e.name for e in p.events() if "::" in e.name and not e.name.startswith(("autograd::", "my::"))]
    assert operators.keys() == set(own)
    assert operators["aten::mm"] == own.count("aten::mm") == 3
    assert kernels == []
