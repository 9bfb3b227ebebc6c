"""The report says what the findings say, loads nothing, and cannot be broken by what a record contains."""

import re
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from bench.compare import compare
from bench.finding import Finding, Findings, FindingsFile
from bench.record import AuditEntry, FileRef, Record, Steps, Timeline
from bench.report import render, terminal_table, terminal_tables
from bench.report.format import gib, number, one_line, percent, rate
from bench.report.rows import make_rows
from bench.store import Loaded
from tests.synthetic import environment, evaluation, record, unfinished

RUNS = Path("runs/test")
HOSTILE = '<script>alert(1)</script> | `x` [bold]"&'


class Page(HTMLParser):
    """Collects what a page links to and loads, and checks that its tags close."""

    VOID = frozenset({"meta", "br", "rect", "polyline", "link", "img", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        found = dict(attrs)
        if tag == "a":
            self.links.append(found["href"] or "")
        elif "href" in found or "src" in found:
            self.loads.append(tag)
        if "id" in found:
            self.ids.append(found["id"] or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def loaded(*records: Record) -> list[Loaded]:
    return [Loaded(one, RUNS / str(i)) for i, one in enumerate(records)]


def found(*records: Record) -> list[Finding]:
    return compare(loaded(*records)).pairs


def pair() -> list[Loaded]:
    base = record("hf-peft", step_s=(2.0,) * 4, peak_gib=20, eval_before=evaluation(0.01), eval_after=evaluation(0.44))
    cand = record("unsloth", peak_gib=10, import_s=40, eval_before=evaluation(0.02), eval_after=evaluation(0.47))
    return loaded(base, cand)


def written(tmp_path: Path, own: list[Loaded], published: list[Loaded] | None = None) -> tuple[str, str, FindingsFile]:
    own, published = ([Loaded(one.record, tmp_path / one.folder) for one in side] for side in (own, published or []))
    content = FindingsFile(title="Test report", own=compare(own), published=compare(published))
    render(content, own, published, tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text()
    content = FindingsFile.model_validate_json((tmp_path / "out" / "findings.json").read_text())
    return page, (tmp_path / "out" / "report.md").read_text(), content


def test_page_and_markdown_show_the_findings_numbers(tmp_path: Path) -> None:
    page, markdown, _ = written(tmp_path, pair())
    for text in (
        "2.00x", "n=1, no interval", "400", "800", "50.0 %", "20.00 → 10.00", "47.6 %", "21.00 → 11.00", "45.5 %",
        "22.00 → 12.00", "43.5 %", "23.00 → 13.00", "1.0 ± 5.0 % → 44.0 ± 5.0 %", "2.0 ± 5.0 % → 47.0 ± 5.0 %",
        "llama-3.1-8b", "lora r16", "bf16", "1 x Test GPU", "measured", "torch 2.11.0", "2026-01-01",
    ):  # fmt: skip
        assert text in page, text
        assert text in markdown, text
    assert "35.0 steps" in page  # break-even


def test_findings_json_round_trips(tmp_path: Path) -> None:
    own = pair()
    _, _, content = written(tmp_path, own)
    assert content.own == compare([Loaded(one.record, tmp_path / one.folder) for one in own])
    assert content.published == Findings()


def test_page_is_self_contained_and_its_links_are_relative(tmp_path: Path) -> None:
    page, _, _ = written(tmp_path, pair())
    parsed = Page(page)
    assert parsed.loads == []
    assert parsed.tags.isdisjoint({"link", "img", "iframe"})
    outside = re.sub(r"<script.*?</script>", "", page, flags=re.S).replace("http-equiv", "")
    assert "http" not in outside and "url(" not in outside and "@import" not in outside
    assert "../runs/test/0/record.json" in parsed.links  # from out/, beside runs/
    within = {link[1:] for link in parsed.links if link.startswith("#")}
    assert within <= set(parsed.ids)
    assert {"finding-1", "speed", "reading"} <= within and len([one for one in within if "record-" in one]) == 2
    assert len(parsed.ids) == len(set(parsed.ids))


def timeline(path: str) -> Timeline:
    file = FileRef(path=path, sha256="0", size_bytes=1)
    return Timeline(file=file, rows=1, requested_hz=100.0, other_gpu_processes=0)


def test_hostile_text_is_escaped_everywhere(tmp_path: Path) -> None:
    bad = unfinished("unsloth", "crashed", HOSTILE, cell={"model": HOSTILE})
    entry = AuditEntry(name=HOSTILE, requested=HOSTILE, effective=None, ok=False)
    good = record("hf-peft", cell={"model": HOSTILE}, audit=[entry],
                  timeline=timeline("javascript:alert(1)"))  # fmt: skip
    (tmp_path / RUNS / "0").mkdir(parents=True)
    (tmp_path / RUNS / "0" / "javascript:alert(1)").touch()
    page, markdown, content = written(tmp_path, [Loaded(bad, Path("out/javascript:alert(2)")), *loaded(good)])
    parsed = Page(page)
    assert len(re.findall("<script", page)) == 2  # the data and the page's own; nothing was measured, so no chart
    assert "javascript%3Aalert%282%29/record.json" in parsed.links
    assert "../runs/test/0/javascript%3Aalert%281%29" in parsed.links
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in markdown
    (line,) = [line for line in markdown.splitlines() if "crashed" in line and line.startswith("|")]
    assert len(re.findall(r"(?<!\\)\|", line)) == 16
    assert HOSTILE in content.own.pairs[0].why
    console = Console(width=200, record=True, file=StringIO())
    console.print(terminal_table(content.own))
    assert HOSTILE in console.export_text().replace("\n", "")


def test_failed_and_unsupported_sides_are_rows_with_their_reason(tmp_path: Path) -> None:
    own = loaded(
        record("hf-peft", cell={"r": 4}),
        unfinished("unsloth", "unsupported", "needs an NVIDIA GPU", None, cell={"r": 4}),
        unfinished("hf-peft", "oom", "out of memory", "warmup", cell={"r": 64}), record("unsloth", cell={"r": 64}),
    )  # fmt: skip
    page, markdown, _ = written(tmp_path, own)
    for text in ("needs an NVIDIA GPU", "hf-peft: oom in warmup: out of memory"):
        assert text in page and text in markdown
    assert len([line for line in markdown.splitlines() if line.startswith("| llama")]) == 2
    assert 'title="not measured">—</span>' in page


def test_a_machine_without_a_pair_says_at_the_top_what_ran_and_why_there_is_none(tmp_path: Path) -> None:
    base = record("hf-peft", step_s=(2.0,) * 4, eval_before=evaluation(0.01), eval_after=evaluation(0.44))
    page, _, _ = written(tmp_path, loaded(base, unfinished("unsloth", "unsupported", "needs an NVIDIA GPU")))
    top = page[page.index("No pair was measured here") : page.index('aria-label="Sections"')]
    for text in ("hf-peft 400 tokens/s", "1.0 ± 5.0 % → 44.0 ± 5.0 %", "needs an NVIDIA GPU"):
        assert text in top, text
    assert "No pair was measured" not in written(tmp_path, pair())[0]


def test_unlike_environments_lie_apart_and_say_what_differs(tmp_path: Path) -> None:
    own = loaded(record("hf-peft"), record("unsloth", env=environment("Other GPU")))
    page, markdown, _ = written(tmp_path, own)
    for text in (page, markdown):
        assert "1 x Other GPU" in text and "1 x Test GPU" in text
        assert "its partner ran in another environment" in text and "gpu0:" in text
        assert not re.search(r"\d\.\d\dx", text)


def test_published_results_are_labelled_and_not_mixed_in(tmp_path: Path) -> None:
    cpu = environment(None)
    own = loaded(record("hf-peft", env=cpu), unfinished("unsloth", "unsupported", "needs an NVIDIA GPU", None, env=cpu))
    page, markdown, content = written(tmp_path, own, pair())
    for text in (page, markdown):
        label = text.index("Published results, not from this machine")
        assert text.index("Test CPU, 2 cores, no GPU") < label < text.index("2.00x")
    assert [f.verdict for f in content.own.pairs] == ["unsupported"]
    assert [f.verdict for f in content.published.pairs] == ["measured"]
    same_machine, _, _ = written(tmp_path, own[:1], loaded(record("unsloth", env=cpu)))
    assert "Published results, not from this run" in same_machine


def test_nothing_measured_still_makes_a_report(tmp_path: Path) -> None:
    page, markdown, content = written(tmp_path, [])
    assert "No records." in page and "No records." in markdown
    assert content.own == Findings()
    empty, _, _ = written(tmp_path, loaded(record("hf-peft", steps=Steps(), phases=[])))
    Page(empty)


def test_random_weights_are_marked(tmp_path: Path) -> None:
    page, markdown, _ = written(tmp_path, loaded(record("hf-peft", cell={"source": "random"})))
    assert "llama-3.1-8b (random weights)" in page and "llama-3.1-8b (random weights)" in markdown


def test_intervals_are_shown_with_repeats(tmp_path: Path) -> None:
    runs = [record(name, step_s=(s + i / 10,) * 4, serial=i) for i in range(3)
            for name, s in (("hf-peft", 2.0), ("unsloth", 1.0))]  # fmt: skip
    page, markdown, content = written(tmp_path, loaded(*runs))
    span = content.own.pairs[0].speedup_interval
    assert span is not None
    for text in (page, markdown.replace("\\[", "[")):
        assert f"faster, 99 % [{span.low:.2f}, {span.high:.2f}], would show " in text
        assert "n=3, no interval" not in text


def test_terminal_table_has_the_headline_numbers() -> None:
    console = Console(width=160, record=True, file=StringIO())
    console.print(terminal_table(compare(pair())))
    text = console.export_text()
    for part in ("llama-3.1-8b", "hf-peft 400", "unsloth 800", "2.00x", "n=1, no interval", "alloc 50.0 % 20.00→10.00",
                 "device 43.5 %", "1 / 1"):  # fmt: skip
        assert part in text, part


def test_of_published_results_the_terminal_shows_measured_pairs_and_counts_the_rest() -> None:
    console = Console(width=160, record=True, file=StringIO())
    lone = Loaded(record("hf-peft", cell={"model": "qwen2.5-7b"}), Path("nowhere"))
    for table in terminal_tables(FindingsFile(title="", own=Findings(), published=compare([*pair(), lone]))):
        console.print(table)
    text = console.export_text()
    assert "llama-3.1-8b" in text and "qwen2.5-7b" not in text
    assert "and 1 without a measured pair: see the page" in text


def test_terminal_tables_keep_published_results_apart() -> None:
    console = Console(width=160, record=True, file=StringIO())
    own = compare(loaded(record("hf-peft", env=environment(None))))
    for table in terminal_tables(FindingsFile(title="", own=own, published=compare(pair()))):
        console.print(table)
    text = console.export_text()
    assert text.index("Test CPU") < text.index("Published results") < text.index("2.00x")


def test_files_beside_the_record_are_linked_when_they_are_there(tmp_path: Path) -> None:
    (tmp_path / RUNS / "0").mkdir(parents=True)
    (tmp_path / RUNS / "0" / "here.parquet").touch()
    here, gone = (
        record("hf-peft", timeline=timeline("here.parquet")),
        record("hf-peft", timeline=timeline("gone.parquet")),
    )
    page, _, _ = written(tmp_path, loaded(here))
    assert "../runs/test/0/here.parquet" in Page(page).links
    page, _, _ = written(tmp_path, loaded(gone))
    assert "gone.parquet" not in page


def test_rows_that_look_alike_spell_out_the_difference() -> None:
    rows = make_rows(found(*(record(cell={"seed": seed, "optimizer": "adamw"}) for seed in (1, 2))))
    assert sorted(row.extra for row in rows) == ["seed=1", "seed=2"]
    assert make_rows(found(record(cell={"seed": 1})))[0].extra == ""


def test_a_long_message_is_one_line_in_tables_and_whole_in_the_record(tmp_path: Path) -> None:
    message = "out of memory\n" + "word " * 100 + "end of it"
    page, markdown, _ = written(tmp_path, loaded(unfinished("hf-peft", "oom", message, "warmup")))
    assert "end of it" not in markdown and "word ..." in markdown
    assert "end of it" in page.split('id="data"')[1] and "end of it" not in page.split('id="data"')[0]
    assert one_line("a\n b") == "a b" and len(one_line(message)) <= 160


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "—"), (0.0, "0"), (1234.4, "1,234"), (99.95, "100.0"), (12.34, "12.3"), (1.0, "1.00"), (0.5, "0.500"),
     (0.01234, "0.0123"), (float("nan"), "nan")],
)  # fmt: skip
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == rate(value) == text


def test_units() -> None:
    assert (gib(3 * 2**29), gib(None), percent(-0.5), percent(None)) == ("1.50", "—", "-50.0 %", "—")
