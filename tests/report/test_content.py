"""What the page is made of: labels, quotes, charts, thinning, sections of other modules, size and images."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.beside import sections as sections_beside
from bench.compare import compare
from bench.finding import FindingsFile
from bench.parity import Check, Parity
from bench.report import render
from bench.report.body import sections
from bench.report.format import UNKNOWN
from bench.report.headline import _parity, quotes, summary
from bench.report.images import write_images
from bench.report.payload import charts_of, encoded, payload, rows_of, tables_of
from bench.report.sections import Cell, Chart, Control, Link, Option, Row, Section, Table
from bench.report.timeline import thin
from bench.report.view import View, make_view
from bench.store import Loaded
from tests.report import beside
from tests.report.made import HOSTILE, everything, report
from tests.synthetic import environment, evaluation, record

LIMIT_BYTES = 6_000_000


def viewed(own: list[Loaded], published: list[Loaded] | None = None) -> View:
    content = FindingsFile(title="T", own=compare(own, config_of=lambda _: None), published=compare(published or []))
    return make_view(content, own, published or [], Path("out"), lambda _: None)


def loaded(*cells: dict[str, Any], **fields: Any) -> list[Loaded]:
    """A pair a cell."""
    return [
        Loaded(record(backend, cell=cell, step_s=(seconds,) * 4, peak_gib=peak, **fields), Path("runs") / str(i))
        for i, cell in enumerate(cells)
        for backend, seconds, peak in (("hf-peft", 2.0, 20.0), ("unsloth", 1.0, 10.0))
    ]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> View:
    return viewed(everything(tmp_path_factory.mktemp("runs")))


def test_labels_say_only_what_tells_them_apart_and_are_unique() -> None:
    plain = viewed(loaded({"r": 4}, {"r": 16})).findings
    assert [one.label for one in plain] == ["llama-3.1-8b r4 bf16", "llama-3.1-8b r16 bf16"]
    alike = viewed(loaded({"batch_size": 1}, {"batch_size": 2}, {"seed": 1}, {"seed": 2})).findings
    labels = [one.label for one in alike]
    assert len(set(labels)) == len(labels)
    assert any("seed=1" in label for label in labels)


def test_quotes_say_speed_memory_interval_parity_machine_versions_and_date(full: View) -> None:
    (group,) = full.groups
    found = quotes(group)[0]
    assert found.finding.row.candidate == "unsloth"  # not a variant of the baseline
    for words in ("x the speed", "less peak memory", "99 % [", "Parity: ", "1 x Test GPU", "torch 2.11.0", "2026-01-01",
                  "NVML process"):  # fmt: skip
        assert words in found.text, words
    assert len({(q.finding.finding.cell.model, q.finding.finding.cell.precision) for q in quotes(group)}) == len(
        quotes(group)
    )
    lone = viewed(loaded({"r": 4}))
    assert "(1 process a side: no interval)" in quotes(lone.groups[0])[0].text
    assert summary(lone) == "2 runs; 1 measured pairs, parity established for 0 of them."


def test_a_quote_prefers_an_interval_and_names_the_check_that_is_open(full: View) -> None:
    """Of one model and precision: the pair with processes enough before one with parity in full."""
    (group,) = full.groups
    for one in quotes(group):
        same = [
            other.finding for other in group.findings
            if (other.finding.cell.model, other.finding.cell.precision)
            == (one.finding.finding.cell.model, one.finding.finding.cell.precision)
            and other.finding.speedup is not None and other.finding.cell.backend == "unsloth"
        ]  # fmt: skip
        assert one.finding.finding.speedup_interval or not any(other.speedup_interval for other in same)
    checks = [Check(name=f"c{n}", status="ok") for n in range(18)]
    gaps = [Check(name=name, status="not checked") for name in ("loss curve", "gradients", "weights")]
    assert _parity(Parity(status="not checked", checks=[*checks, gaps[0]])) == "18 checks ok, not checked: loss curve"
    assert _parity(Parity(status="not checked", checks=[*checks, *gaps])) == "not checked"
    assert _parity(Parity(status="ok", checks=checks)) == "ok"
    assert _parity(None) == UNKNOWN


def test_every_specification_is_valid_vega_lite_and_draws_columns_that_are_there(full: View) -> None:
    import altair as alt

    parts = sections(full)
    tables = tables_of(full, parts)
    for chart in charts_of(parts):
        alt.Chart.from_dict(dict(chart.spec), validate=True)
        shown = rows_of(tables, chart)[chart.tables[0]]
        assert shown, chart.id
        assert set(chart.columns) <= set(shown[0]), chart.id


def test_data_are_on_the_page_once_and_two_tables_of_a_name_are_refused(full: View) -> None:
    parts = sections(full)
    document = payload(full, parts)
    assert all("values" not in json.dumps(one["spec"]) for one in document["charts"].values())
    assert len(document["records"]) == len(full.records) == len({one.index for one in full.records})
    other = Section(id="x", title="X", data={"speed": {"a": [1]}})
    with pytest.raises(ValueError, match="'speed'"):
        tables_of(full, [*parts, other])


def test_text_of_the_data_cannot_end_its_element() -> None:
    encoding, text = encoded({"a": "</script><script>alert(1)</script>"})
    assert encoding == "json" and "<" not in text and json.loads(text)["a"].startswith("</script>")
    encoding, text = encoded({"a": "<" * 300_000})
    assert encoding == "gzip" and "<" not in text and len(text) < 3000


def test_unbeaten_cells_are_those_that_no_other_beats(full: View) -> None:
    chart = next(one for one in charts_of(sections(full)) if one.id == "choice")
    rows = rows_of(tables_of(full, sections(full)), chart)["choice"]
    for one in rows:
        better = [
            o for o in rows
            if round(o["gib"], 2) <= round(one["gib"], 2) and o["tokens_per_s"] >= one["tokens_per_s"]
            and (round(o["gib"], 2), o["tokens_per_s"]) != (round(one["gib"], 2), one["tokens_per_s"])
        ]  # fmt: skip
        if any(o["score"] is None for o in rows):
            assert one["unbeaten"] == (not better)
    assert any(one["unbeaten"] for one in rows)


def test_a_run_that_ended_before_its_steady_steps_shows_the_steps_it_has() -> None:
    short = record("unsloth", cell={"untimed_steps": 5, "max_steps": 9}, step_s=(1.0,), serial=9, status="crashed")
    view = viewed([*loaded({}), Loaded(short, Path("runs/short"))])
    steps = next(one for one in sections(view) if one.id == "training").data["steps"]
    index = view.index_of[short.id]
    parts = [part for at, part in zip(steps["record"], steps["part"], strict=True) if at == index]
    assert parts == ["warm-up"] * 3


@pytest.mark.parametrize("seed", range(5))
def test_thinning_keeps_every_peak_of_every_phase(seed: int) -> None:
    rng = np.random.default_rng(seed)
    time_s = np.cumsum(rng.random(5000))
    series = [rng.random(5000).cumsum() % 7, rng.random(5000)]
    starts = sorted(rng.choice(time_s, 8, replace=False).tolist())
    kept = thin(time_s, series, starts)
    assert len(kept) <= 200 and kept == sorted(set(kept)) and kept[0] == 0 and kept[-1] == 4999
    edges = [0, *np.searchsorted(time_s, starts).tolist(), 5000]
    for a, b in zip(edges, edges[1:], strict=False):
        for values in series:
            if b > a:
                assert max(values[i] for i in kept if a <= i < b) == values[a:b].max()
    assert thin(time_s[:150], [series[0][:150]], []) == list(range(150))


def test_another_module_adds_a_section(tmp_path: Path) -> None:
    spec = {"mark": "bar", "data": {"name": "claims"}, "encoding": {"x": {"field": "gain", "type": "quantitative"}}}
    control = Control("Claim", "claim", [Option("first", [HOSTILE]), Option("second", ["b"])])
    chart = Chart(
        "claims", "Claims", "See.", "Two claims.", spec, ["claims"], {"claim": "claim", "gain": "gain"}, control
    )
    table = Table(
        ["Claim", ">Gain"], [Row([Cell(HOSTILE, href="#finding-1"), Cell("2", links=[Link("run", "a b.json")])])]
    )
    data: dict[str, dict[str, list[Any]]] = {"claims": {"claim": [HOSTILE, "b"], "gain": [1.0, 2.0]}}
    page = report(tmp_path, [Section("claims", "Claims", charts=[chart], tables=[table], data=data)]).read_text()
    before = page.split('id="data"')[0]
    assert (
        before.index('<section id="ladder"')
        < before.index('<section id="claims"')
        < before.index('<section id="failures"')
    )
    assert 'data-chart="claims"' in before and "&lt;script&gt;alert(1)" in before and 'href="a%20b.json"' in before


def test_disturbed_runs_stand_apart_from_those_that_failed() -> None:
    runs = [record(status="ok"), record("unsloth", status="contaminated", message="others"),
            record(cell={"r": 8}, status="crashed", message="bang", failed_phase="load")]  # fmt: skip
    made = {one.id: one for one in sections(viewed([Loaded(one, Path("nowhere")) for one in runs]))}
    told = {
        id: [row.cells[1].tag for table in made[id].tables for row in table.rows] for id in ("failures", "disturbed")
    }
    assert told == {"failures": ["crashed"], "disturbed": ["contaminated"]}
    assert made["disturbed"].collapsed and not made["failures"].collapsed


def test_a_thousand_records_stay_under_six_megabytes(tmp_path: Path) -> None:
    random.seed(0)
    own = []
    for i in range(500):
        for backend, seconds in (("hf-peft", 2.0), ("unsloth", 1.0)):
            steps = tuple(seconds + random.random() / 10 for _ in range(100))
            one = record(
                backend,
                step_s=steps,
                cell={"weight_decay": i / 1000},
                serial=i,
                env=environment(),
                eval_after=evaluation(0.4),
            )
            curve = one.steps.model_copy(update={"loss": [1 + random.random() for _ in one.steps.loss]})
            own.append(Loaded(one.model_copy(update={"steps": curve}), tmp_path / str(i)))
    content = FindingsFile(title="Large", own=compare(own, config_of=lambda _: None), published=compare([]))
    beside.everything(tmp_path / "results")
    added, _ = sections_beside([tmp_path / "results"], tmp_path / "out", set())
    render(content, own, [], tmp_path / "out", lambda _: None, added)
    assert (tmp_path / "out" / "index.html").stat().st_size < LIMIT_BYTES


def test_every_chart_is_an_image_too(full: View, tmp_path: Path) -> None:
    parts = sections(full)
    written = write_images(full, parts, tmp_path / "images", ("svg",))
    assert len(written) == len(charts_of(parts)) and all("</svg>" in path.read_text() for path in written)
    (png,) = write_images(
        full, [Section("a", "A", charts=parts[0].charts, data=parts[0].data)], tmp_path / "png", ("png",)
    )
    assert png.read_bytes().startswith(b"\x89PNG")
