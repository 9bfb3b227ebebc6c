"""``peftmark regress``, ``bisect`` and ``watch``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from bench.console import err, out, told
from bench.errors import InputError, nearest

if TYPE_CHECKING:
    from bench.regress.index import Index
    from bench.regress.measure import Options
    from bench.regress.verdict import Comparison

PackageOpt = Annotated[str, typer.Option(help="unsloth, transformers, trl, peft, bitsandbytes, torch, ...")]
WheelhouseOpt = Annotated[Path | None, typer.Option(help="Folder of wheels in place of the index.")]
LevelsOpt = Annotated[str, typer.Option(help="static, kernels, model with commas between them.")]
KernelsOpt = Annotated[str, typer.Option(help="quick, all, or kernel families with commas between them.")]
PolicyOpt = Annotated[Path | None, typer.Option(help="Policy file; default the shipped policy.yaml.")]
ImportsOpt = Annotated[int, typer.Option(help="Processes that time the import; from 3 on it has an interval.", min=1)]
HangOpt = Annotated[float, typer.Option(help="An import that takes longer hangs, seconds.")]
AcrossOpt = Annotated[list[str] | None, typer.Option(help="Compare although this differs; it is said.")]
JsonOpt = Annotated[Path | None, typer.Option("--json", help="File for the comparison.")]
JunitOpt = Annotated[Path | None, typer.Option("--junit", help="File for JUnit XML.")]
MarkdownOpt = Annotated[
    Path | None, typer.Option("--markdown", help="File to add the summary to, such as $GITHUB_STEP_SUMMARY.")
]
LEVELS = "static,kernels,model"


def register(app: typer.Typer) -> None:
    """Add the commands to the main command line."""
    app.command(name="regress")(regress)
    app.command(name="bisect")(bisect)
    app.command(name="watch")(watch)


def regress(
    baseline: Annotated[str, typer.Option(help="A version, wheel, folder or checkout.")],
    candidate: Annotated[str, typer.Option(help="A version, wheel, folder or checkout.")],
    package: PackageOpt = "unsloth",
    wheelhouse: WheelhouseOpt = None,
    levels: LevelsOpt = LEVELS,
    kernels: KernelsOpt = "quick",
    import_runs: ImportsOpt = 1,
    hangs_after: HangOpt = 240.0,
    policy: PolicyOpt = None,
    across: AcrossOpt = None,
    follow: Annotated[bool, typer.Option("--follow", help="Give each release the versions that it demands.")] = False,
    suite: Annotated[str | None, typer.Option(help="Suite of one cell for speed, accuracy and dispatch.")] = None,
    budget_minutes: Annotated[
        float, typer.Option(help="GPU minutes for the suite's runs; 0 judges those in --runs.", min=0)
    ] = 10.0,
    runs: Annotated[Path | None, typer.Option(help="Keep the suite's records here, and go on from them.")] = None,
    json_file: JsonOpt = None,
    junit: JunitOpt = None,
    markdown: MarkdownOpt = None,
) -> None:
    """Compare two releases. Exit 0 passed, 1 regressed, 2 could not run."""
    from bench.regress import measure as measuring
    from bench.regress import policy as policies
    from bench.regress.overlay import build
    from bench.regress.verdict import compare

    with told():
        if runs and not suite:
            raise InputError("--runs", "keeps the runs of a suite, and there is none", "give it with --suite")
        options, index = _options(levels, kernels, import_runs, hangs_after), _index(wheelhouse)
        rules = policies.load(policy)
        sides = [build(source, package, index, follow=follow) for source in (baseline, candidate)]
        releases = [measuring.measure(side, options, _progress) for side in sides]
        comparison = compare(releases[0], releases[1], rules, across or ())
        if suite:
            from bench.regress.levels.paired import added

            comparison = added(comparison, sides[0], sides[1], suite, budget_minutes, rules, _progress, runs)
        _tell(comparison, json_file, junit, markdown)
    raise typer.Exit(comparison.exit_code)


def bisect(
    good: Annotated[str, typer.Option(help="Older release, the yardstick.")],
    bad: Annotated[str, typer.Option(help="Newer release that differs from it.")],
    package: PackageOpt = "unsloth",
    wheelhouse: WheelhouseOpt = None,
    check: Annotated[str, typer.Option(help="Levels to check, with commas between them.")] = LEVELS,
    kernels: KernelsOpt = "quick",
    metric: Annotated[str, typer.Option(help="Pattern of the metrics to look at.")] = "*",
    improved: Annotated[bool, typer.Option("--improved", help="Find the release that mended, not broke.")] = False,
    hangs_after: HangOpt = 240.0,
    policy: PolicyOpt = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the search and its readings.")] = None,
) -> None:
    """Find the first release in which a metric changed against --good. Exit 0 found, 2 could not run."""
    from bench.regress import outputs
    from bench.regress import policy as policies
    from bench.regress.bisect import first_change
    from bench.regress.watch import measurer

    with told():
        index, rules = _index(wheelhouse), policies.load(policy)
        measured = measurer(package, index, _options(check, kernels, 1, hangs_after), _progress)
        found = first_change(
            index.versions(package), good, bad, measured, rules, metric=metric, improved=improved, said=_progress
        )
        out.print(
            f"first {'mended' if improved else 'bad'} release: [bold]{found.first_with}[/] "
            f"(last before it: {found.last_without}); {found.checks} checks and one of {good}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        out.print(f"metrics: {escape(', '.join(found.changed[:5]))}", highlight=False, soft_wrap=True)
        for version, reason in found.skipped.items():
            near = " (it may have come with this one)" if version in found.between else ""
            out.print(f"skipped {version}{near}: {escape(reason)}", highlight=False, soft_wrap=True)
        if json_file:
            outputs.write(json_file, found.model_dump_json(indent=1, exclude_defaults=True) + "\n")


def watch(
    history_file: Annotated[Path, typer.Option("--history", help="History, one JSON line a release.")],
    version: Annotated[str | None, typer.Option(help="Check this release as if it were the newest.")] = None,
    package: PackageOpt = "unsloth",
    wheelhouse: WheelhouseOpt = None,
    levels: LevelsOpt = LEVELS,
    kernels: KernelsOpt = "quick",
    import_runs: ImportsOpt = 1,
    hangs_after: HangOpt = 240.0,
    policy: PolicyOpt = None,
    chart: Annotated[Path | None, typer.Option(help="File for each metric over releases, as JSON.")] = None,
    json_file: JsonOpt = None,
    junit: JunitOpt = None,
    markdown: MarkdownOpt = None,
) -> None:
    """Check the newest release against the last good one, and append it to the history: one command for cron."""
    from bench.regress import history, outputs
    from bench.regress import policy as policies
    from bench.regress import watch as watching

    with told():
        index = _index(wheelhouse)
        measured = watching.measurer(package, index, _options(levels, kernels, import_runs, hangs_after), _progress)
        versions = index.versions(package)
        if version:
            versions = watching.until(versions, version, history_file)
        found = watching.watch(history_file, versions, measured, policies.load(policy))
        if chart:
            drawn = [series.model_dump() for series in history.series(history.read(history_file))]
            outputs.write(chart, json.dumps(drawn, indent=1) + "\n")
        if found.comparison:
            _tell(found.comparison, json_file, junit, markdown)
        else:
            what = "the first of this history" if found.new else "nothing new"
            out.print(f"{package} {found.version}: {what}", highlight=False)
    raise typer.Exit(found.comparison.exit_code if found.comparison else 0)


def _tell(comparison: "Comparison", json_file: Path | None, junit: Path | None, markdown: Path | None) -> None:
    from bench.regress import outputs

    for part in outputs.tables(comparison):
        out.print(part, highlight=False, soft_wrap=isinstance(part, str))
    if json_file:
        outputs.write(json_file, comparison.model_dump_json(indent=1) + "\n")
    if markdown:
        outputs.write(markdown, outputs.markdown(comparison), append=True)
    if junit:
        outputs.junit(comparison, junit)


def _progress(text: str) -> None:
    err.print(escape(text), highlight=False, soft_wrap=True)


def _index(wheelhouse: Path | None) -> "Index":
    from bench.regress.index import Index

    return Index(wheelhouse)


def _options(levels: str, kernels: str, import_runs: int, hangs_after: float) -> "Options":
    from bench.regress.levels.kernels import families
    from bench.regress.measure import Options
    from bench.regress.reading import CPU_LEVELS
    from kernels_check.families import FAMILIES

    names = dict.fromkeys(name.strip() for name in levels.split(",") if name.strip())
    for name in names:
        if name not in CPU_LEVELS:
            raise InputError("--levels", f"unknown level {name!r}", nearest(name, list(CPU_LEVELS)))
    for name in families(kernels):
        if name not in FAMILIES:
            raise InputError("--kernels", f"unknown family {name!r}", nearest(name, ["quick", "all", *FAMILIES]))
    chosen = tuple(level for level in CPU_LEVELS if level in names)
    return Options(levels=chosen, kernels=kernels, import_runs=import_runs, import_timeout_s=hangs_after)
