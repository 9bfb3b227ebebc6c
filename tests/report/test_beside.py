"""Kernels, limits and releases on the report page: what is told, linked, left out and escaped."""

import re
from pathlib import Path

import altair as alt
import pytest
from typer.testing import CliRunner

from bench import beside as other_files
from bench.cli import app
from bench.limit import section as limits
from bench.limit.result import LimitResult
from bench.regress import section as releases
from bench.report.payload import rows_of
from bench.report.sections import Row, Section, Table
from bench.report.view import anchor
from bench.store import Store
from kernels_check.page import section as kernels
from kernels_check.page.reading import read_folder
from kernels_check.page.timings import Timings, compared, speed_rows
from tests import synthetic
from tests.kernels_check.test_report import benchmark, entry, record, timings
from tests.report import beside
from tests.report.beside import NASTY


def found(folder: Path, out: Path, on_page: frozenset[str] = frozenset()) -> dict[str, Section]:
    sections, unread = other_files.sections([folder], out, on_page)
    assert unread == []
    return {one.id: one for one in sections}


def lines(table: Table) -> dict[str, Row]:
    """Rows by the text of their first cell."""
    return {row.cells[0].text: row for row in table.rows}


def limits_of(*results: LimitResult, on_page: frozenset[str] = frozenset()) -> Section:
    paths = {Path(f"runs/{i}/limit.json"): one for i, one in enumerate(results)}
    made_section = limits.section(paths, Path("out"), on_page)
    assert made_section is not None
    return made_section


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("beside") / "results"
    beside.everything(folder)
    return folder


def test_a_folder_without_them_has_no_section_and_their_place_is_where_the_commands_put_them(
    data: Path, tmp_path: Path
) -> None:
    assert found(tmp_path, tmp_path) == {}
    assert list(found(data, tmp_path)) == ["limits", "kernels", "releases"]


def test_every_chart_is_valid_and_draws_columns_that_are_there(data: Path, tmp_path: Path) -> None:
    for section in found(data, tmp_path).values():
        (chart,) = section.charts
        alt.Chart.from_dict(dict(chart.spec), validate=True)
        shown = rows_of(section.data, chart)[chart.tables[0]]
        assert shown and set(chart.columns) <= set(shown[0])


def test_files_link_relative_to_the_page(data: Path, tmp_path: Path) -> None:
    out = data.parent / "out"
    for section in found(data, out).values():
        hrefs = [link.href for table in section.tables for row in table.rows for cell in row.cells
                 for link in cell.links]  # fmt: skip
        assert hrefs and all((out / href).resolve().is_file() for href in hrefs)


def test_a_bad_file_is_named_and_the_others_are_shown(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    beside.everything(folder)
    (folder / "kernels" / "bad.json").write_text('{"benchmarks": 1}')
    (folder / "limits" / "0" / "limit.json").write_text("{}")
    (folder / "releases" / "bad.jsonl").write_text("{}\n")
    (folder / "releases" / "binary.jsonl").write_bytes(b"\xff\xfe")
    sections, unread = other_files.sections([folder, tmp_path], tmp_path, set())  # one is below the other
    assert [one.id for one in sections] == ["limits", "kernels", "releases"]
    told = [re.sub(rf"{folder}/|\n.*", "", text) for text in unread]
    assert [text.split(": ")[0] for text in told] == [
        "limits/0/limit.json", "kernels/bad.json, datetime", "releases/bad.jsonl, line 1, release",
        "releases/binary.jsonl",
    ]  # fmt: skip


# Kernels


def test_a_kernel_is_a_line_with_cases_faults_and_speed_at_one_place(data: Path, tmp_path: Path) -> None:
    (table,) = found(data, tmp_path)["kernels"].tables
    assert table.columns[1:4] == [
        ">cpu, unsloth 2026.1.1: passed", ">cuda, unsloth 2026.1.1: passed", ">Faults noticed",
    ]  # fmt: skip
    rows = lines(table)
    assert list(rows) == ["rope", NASTY, "nf4", "gemv", "lone"]  # those checked and timed first
    _, cpu, cuda, faults, eager, compiled, share, files = rows["rope"].cells
    assert (cpu.text, cuda.text, cuda.tag) == ("1 of 1 ", "1 of 1 ", "")  # Liger's failure is not Unsloth's
    assert (faults.text, faults.sub) == ("1 of 2", f"not: {NASTY}")
    # Forward and backward, where torch.compile was timed too: 8 over 2 us, 3 over 2 us; 2 MB at 2e12 bytes/s is 1 us.
    assert (eager.text, eager.sub) == ("4.00x (3.00 to 5.33)", "llama-8b, forward+backward")
    assert (compiled.text, share.text, share.sub) == ("1.50x (1.12 to 2.00)", "50 %", "memory")
    assert [link.text for link in files.links] == ["cpu", "cuda", "faults", "speed"]
    assert [(cell.text, cell.sub, cell.tag) for cell in rows["nf4"].cells[1:3]] == [
        ("1 of 1 ", "1 not runnable here", ""), ("1 of 2 ", "", "failed"),
    ]  # fmt: skip
    assert rows[NASTY].cells[6].sub == "memory, CPU-bound in 50 % of rounds"
    assert [cell.text for cell in rows["lone"].cells[4:7]] == ["—"] * 3  # Unsloth was not timed


def test_the_section_says_how_many_passed_and_the_chart_the_fastest_first(data: Path, tmp_path: Path) -> None:
    section = found(data, tmp_path)["kernels"]
    for words in ("3 of 3 of Unsloth's cases passed in Triton's interpreter", "3 of 4 on", "1 of 2 faults"):
        assert words in section.text
    columns = section.data["kernels_speed"]
    drawn = list(zip(columns["kernel"], columns["candidate"], columns["ratio"], strict=True))
    assert [(name, who, round(ratio, 2)) for name, who, ratio in drawn] == [
        ("rope", "Unsloth", 4.0), ("rope", "Liger", 8.0), ("rope", "torch.compile", 2.67),
        (f"{NASTY} (forward)", "Unsloth", 1.33), (f"{NASTY} (forward)", "torch.compile", 2.0),
        ("gemv (forward)", "Unsloth", 0.8),
    ]  # fmt: skip
    assert "0.80x (gemv (forward)) to 4.00x (rope)" in section.charts[0].alt
    assert "it is faster in 1, slower in 1 and by the quartiles not told apart in 0" in section.charts[0].alt


def test_the_kernels_own_page_is_linked_where_it_lies_beside_the_report(data: Path, tmp_path: Path) -> None:
    def first_link(out: Path) -> tuple[str, str, str]:
        made_section = kernels.section(read_folder(data / "kernels"), out)
        assert made_section is not None
        (link, *_) = lines(made_section.tables[0])["rope"].cells[-1].links
        return link.text, link.href, link.fragment

    assert first_link(tmp_path / "h100")[0] == "cpu"
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "index.html").touch()
    assert first_link(tmp_path / "h100") == ("details", "../kernels/index.html", "rope")
    assert first_link(tmp_path / "kernels")[0] == "cpu"  # this page would overwrite that one


def test_without_timings_or_faults_there_is_no_chart_and_no_column_of_them(tmp_path: Path) -> None:
    made_section = kernels.section({tmp_path / "cpu.json": record(entry())}, tmp_path)
    assert made_section is not None and list(made_section.charts) == [] and not made_section.data
    assert made_section.tables[0].columns == ["Kernel", ">cpu, unsloth 2026.1.1: passed", "Files"]


def test_where_candidates_are_compared() -> None:
    def place(*timed: tuple[str, str, str, int]) -> str:
        rows = speed_rows(Timings.model_validate(timings(*(
            benchmark(candidate, 1e-6, shape=shape, direction=direction, bytes=size)
            for candidate, shape, direction, size in timed
        )))).get("norm", [])  # fmt: skip
        chosen = compared(rows)
        return f"{chosen['unsloth'].timed.shape} {chosen['unsloth'].timed.direction}" if chosen else ""

    pair = [(name, "small", "forward", 1) for name in ("eager", "unsloth")]
    large = [(name, "large", "forward", 9) for name in ("eager", "unsloth")]
    assert place(*pair, *large) == "large forward"
    assert place(*pair, *large, ("compile", "small", "forward", 1)) == "small forward"
    both = [(name, "small", "forward+backward", 2) for name in ("eager", "unsloth")]
    assert place(*pair, *large, *both) == "small forward+backward"
    assert place(("eager", "small", "forward", 1), ("unsloth", "large", "forward", 9)) == ""


# Limits


def test_a_limit_is_a_line_with_its_bracket_its_ratio_and_whether_it_holds() -> None:
    section = limits_of(*beside.limits())
    (table,) = section.tables
    rows = {(row.cells[2].text, row.cells[1].text): row.cells for row in table.rows}
    assert list(rows) == [
        ("hf-peft", "longest sequence, 24 GiB"), ("unsloth", "longest sequence, 24 GiB"),
        ("hf-peft", "largest batch, 24 GiB"), ("unsloth", "largest batch, 24 GiB"), ("unsloth", "largest rank, 24 GiB"),
    ]  # fmt: skip
    base, unsloth = rows["hf-peft", "longest sequence, 24 GiB"], rows["unsloth", "longest sequence, 24 GiB"]
    assert [cell.text for cell in base[3:7]] == ["4,096", "4,352", "", "not checked"]
    assert base[1].sub == "emulated: the card has 80.0 GiB"
    assert [cell.text for cell in unsloth[3:6]] == ["16,384", "17,152", "4.00x"]
    assert (unsloth[4].sub, unsloth[5].sub) == ("found to within 256 or 5 %", "(3.76 to 4.19)")
    assert (unsloth[6].tag, unsloth[6].sub) == ("holds", "17,152: out of memory")
    none, batch = rows["hf-peft", "largest batch, 24 GiB"], rows["unsloth", "largest batch, 24 GiB"]
    assert none[3].text == "none" and [cell.text for cell in batch[4:6]] == ["the largest tried trains", "—"]
    alone = rows["unsloth", "largest rank, 24 GiB"]
    assert (alone[5].text, alone[6].tag, alone[6].sub) == ("—", "does not hold", "520: trained")


def test_limits_of_other_machines_and_settings_are_not_set_against_each_other() -> None:
    base, unsloth = beside.limits()[:2]
    elsewhere = unsloth.model_copy(update={"environment": synthetic.environment("Other GPU")})
    bigger = beside.limit("unsloth", "max_length", 8192, 8448, r=64)
    for other in (elsewhere, bigger):
        section = limits_of(base, other)
        rows = {row.cells[2].text: row for row in section.tables[0].rows}
        assert rows["unsloth"].cells[5].text == "—"
        assert len(set(section.data["limits"]["label"])) == 2


def test_a_published_copy_of_a_search_is_shown_once_and_probes_link_to_runs_of_the_page() -> None:
    one = beside.limits()[1]
    section = limits_of(one, one, on_page=frozenset({"unsloth-16384"}))
    ((row,),) = [table.rows for table in section.tables]
    assert [(link.text, link.href) for link in row.cells[-1].links] == [
        ("limit.json", "../runs/1/limit.json"), ("run at the limit", f"#{anchor('unsloth-16384')}"),
    ]  # fmt: skip


def test_the_limits_chart_says_the_ratio_once_and_who_does_not_train_at_all() -> None:
    section = limits_of(*beside.limits())
    columns = section.data["limits"]
    assert columns["text"] == ["", "4.00x", "", "hf-peft: not even 1", ""]
    assert columns["verified"] == [False, True, False, False, False]
    (chart,) = section.charts
    assert chart.control is not None
    assert [option.values[0] for option in chart.control.options] == ["max_length", "batch_size", "r"]
    assert "hf-peft 4,096, unsloth 16,384 (4.00x)" in chart.alt and "batch" not in chart.alt.split(":")[0]
    assert not limits_of(beside.limits()[2]).charts  # nothing trains: nothing to draw


# Releases


def test_a_release_is_a_line_with_its_verdict_and_what_changed() -> None:
    section = releases.section({Path("results/releases/unsloth-cpu.jsonl"): beside.releases()}, Path("out"))
    assert section is not None
    (table,) = section.tables
    assert table.title == "unsloth: unsloth-cpu"
    told = {version: (row.cells[2].tag, row.cells[2].sub, row.cells[3].text) for version, row in lines(table).items()}
    assert told == {
        "2026.5.1": ("improved", "against 2026.2.1", "improved: static/import_s"),
        "2026.4.1": ("inconclusive", f"against 2026.2.1; model: {NASTY} timed out", ""),
        "2026.3.1": ("regressed", "against 2026.2.1",
                     f"regressed: 2 of kernels/rope, static/import_s, model/{NASTY}"),
        "2026.2.1": ("passed", "against 2026.1.1", ""),
        "2026.1.1": ("first", "nothing to compare it with", ""),
    }  # fmt: skip
    assert list(told) == sorted(told, reverse=True)
    row = lines(table)["2026.5.1"]
    assert (row.cells[0].sub, row.cells[1].text) == ("checked 2026-11-01", "2026.5-28")
    assert row.cells[4].links[0].href == "../results/releases/unsloth-cpu.jsonl"


def test_a_first_release_that_does_not_import_says_so() -> None:
    one = beside.releases()[0]
    readings = [r.model_copy(update={"state": "bad", "text": "no torch"}) if r.name == "static/import" else r
                for r in one.release.readings]  # fmt: skip
    broken = one.model_copy(update={"good": False, "release": one.release.model_copy(update={"readings": readings})})
    section = releases.section({Path("a.jsonl"): [broken]}, Path("out"))
    assert section is not None
    verdict = section.tables[0].rows[0].cells[2]
    assert (verdict.tag, verdict.sub) == ("failed", "does not import: no torch")


def test_the_releases_chart_offers_what_changed_first_and_marks_it() -> None:
    paths = {Path("a.jsonl"): beside.releases(), Path("b.jsonl"): beside.releases()[:1], Path("c.jsonl"): []}
    section = releases.section(paths, Path("out"))
    assert section is not None
    (chart,) = section.charts
    assert chart.control is not None
    labels = [option.label for option in chart.control.options]
    assert labels[0] == "a: time of the import, s" and labels[-1].startswith("b: ")
    assert labels.index("a: kernels/rope: how many are bad") < labels.index("a: kernels/rope/worst error, tolerances")
    rows = rows_of(section.data, chart)["releases"]
    assert [(row["value"], row["mark"], row["shown"]) for row in rows][2:] == [
        (30.0, "regressed", "30.0 s"), (30.0, "no change that counts", "30.0 s"), (9.0, "improved", "9.00 s"),
    ]  # fmt: skip
    assert "2026.3.1 30.0 (regressed)" in chart.alt
    assert releases.section({Path("c.jsonl"): []}, Path("out")) is None


# On the page


def test_hostile_names_are_escaped(made_page: Path) -> None:
    page = made_page.read_text().split('<script type="application/json" id="data"')[0]
    assert "alert(3)" in page and "<script" not in page
    assert "&lt;script&gt;alert(3)&lt;/script&gt;, chain-sum" in page  # a model's name in the words of a chart
    order = ("ladder", "memory-model", "limits", "kernels", "releases", "failures")
    positions = [page.index(f'<section id="{name}"') for name in order]
    assert positions == sorted(positions)


def test_the_command_shows_them_and_names_a_bad_file_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    one = synthetic.record()
    store.add(one, store.workspace(one.id))
    beside.everything(store.root)
    (store.root / "kernels" / "bad.json").write_text('{"benchmarks": 1}')
    (store.root / "limits" / "0" / "limit.json").write_text("{}")
    ran = CliRunner().invoke(app, ["report", str(store.root), "--out", str(tmp_path / "out")])
    assert ran.exit_code == 0, ran.output
    assert ran.stderr.count("bad.json") == ran.stderr.count("limit.json") == 1
    page = (tmp_path / "out" / "index.html").read_text()
    for name in ("limits", "kernels", "releases"):
        assert f'<section id="{name}"' in page and f'<a href="#{name}">' in page
