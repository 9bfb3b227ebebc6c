"""Writes index.html, report.md and findings.json from records that were read elsewhere."""

from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment as Templates
from jinja2 import PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup, escape

from bench.cache import cache_dir, publish_folder
from bench.compare import ConfigOf, known_config
from bench.finding import FindingsFile
from bench.report import format as fmt
from bench.report import ladder
from bench.report.body import sections
from bench.report.headline import quotes, summary, versions
from bench.report.payload import encoded, payload
from bench.report.rows import METER_NAMES, accuracy_row
from bench.report.sections import FILTERS, Section
from bench.report.view import View, make_view
from bench.store import Loaded

SCRIPT = Path(__file__).parent / "templates" / "page.js"


def render(
    content: FindingsFile, own: Sequence[Loaded], published: Sequence[Loaded], out: Path,
    config_of: ConfigOf = known_config, added: Sequence[Section] = (),
) -> None:  # fmt: skip
    """Write the three files into ``out`` (made when missing): ``own`` runs first, ``published`` ones apart below.

    ``config_of`` finds a record's model configuration, which MFU needs; ``added`` are sections of other modules.
    """
    view = make_view(content, own, published, out, config_of)
    out.mkdir(parents=True, exist_ok=True)
    (out / "index.html").write_text(page(view, sections(view, added)), encoding="utf-8")
    (out / "report.md").write_text(markdown(view), encoding="utf-8")
    (out / "findings.json").write_text(content.model_dump_json(indent=1) + "\n", encoding="utf-8")


def page(view: View, parts: Sequence[Section]) -> str:
    """The page: everything inline, nothing loaded."""
    encoding, data = encoded(payload(view, parts))
    quoted = {group.anchor: quotes(group) for group in view.groups}
    telling = {group.origin for group in view.groups if quoted[group.anchor]}
    silent = [group for group in view.groups if group.origin in telling and not quoted[group.anchor]]
    return make_templates().get_template("index.html.j2").render(
        view=view, sections=parts, quotes=quoted, silent=silent, summary=summary(view),
        filters=_filters(view), any_own=any(not group.origin for group in view.groups), versions=versions,
        encoding=encoding, data=Markup(data), script=Markup(SCRIPT.read_text(encoding="utf-8")),
        vega=Markup(_vega() if any(part.charts for part in parts) else ""),
    )  # fmt: skip


def markdown(view: View) -> str:
    """The same findings as Markdown."""
    return make_templates().get_template("report.md.j2").render(
        view=view, versions=versions, meters=METER_NAMES
    )  # fmt: skip


@cache
def _vega() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script; bundled once a release of vl_convert, which takes seconds."""
    import vl_convert

    def build(folder: Path) -> None:
        (folder / "vega.js").write_text(vl_convert.javascript_bundle(), encoding="utf-8")  # type: ignore[call-arg]

    made = publish_folder(build, cache_dir() / "page" / f"vl-convert-{version('vl-convert-python')}")
    text = (made / "vega.js").read_text(encoding="utf-8")
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _filters(view: View) -> dict[str, tuple[str, list[str]]]:
    """Name, title and choices of every filter that has a choice."""
    found = {}
    for name, title in FILTERS.items():
        values = dict.fromkeys(value for one in view.records if (value := one.about.get(name)))
        if len(values) > 1:
            choices = sorted(values, key=lambda v: (not v.isdigit(), int(v) if v.isdigit() else 0))
            found[name] = (title, choices)
    return found


def _shown(text: str) -> Markup:
    """Text for the page, each unknown with its explanation."""
    return Markup(escape(text).replace(fmt.UNKNOWN, Markup('<span class="unknown" title="not measured">—</span>')))


def _markdown(text: str) -> str:
    """Text as one Markdown table cell: no line break, no column, no tag."""
    for plain, safe in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), (">", "&gt;"), ("`", "\\`"), ("[", "\\[")):
        text = text.replace(plain, safe)
    return " ".join(text.split())


def _link(path: str) -> str:
    """A fragment as it is, a path quoted, so that no file name is a scheme."""
    return path if path.startswith("#") else quote(path)


def make_templates() -> Templates:
    """With the filters of the page; the page of the kernels uses them too."""
    templates = Templates(
        loader=PackageLoader("bench.report"),
        autoescape=select_autoescape(enabled_extensions=("html.j2",), default=False),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = {
        "number": fmt.number, "gib": fmt.gib, "percent": fmt.percent, "seconds": fmt.seconds, "md": _markdown,
        "shown": _shown, "link": _link, "one_line": fmt.one_line, "anchor": quote,
        "accuracy_row": accuracy_row, "ladder_view": ladder.view,
    }  # fmt: skip
    templates.filters.update(filters)
    templates.globals.update(UNKNOWN=fmt.UNKNOWN)
    return templates
