"""Commands that read finished logs: ``analyze``, ``plot``, ``stats``, ``claims``, ``report``."""

import json
from pathlib import Path
from typing import NamedTuple

from zo.errors import UserError
from zo.files import check_out, make_folder


def _folder_flags(parser, out_help: str | None = None) -> None:
    parser.add_argument("folder", type=Path, help="folder of CSV logs, e.g. results/csv_logs")
    parser.add_argument("--study", metavar="FILE", help="only the runs of this study (a file, or its JSON)")
    parser.add_argument(
        "--backward-cost",
        metavar="X",
        help="forward passes that a backward pass counts as, in forward-pass equivalents (default: the "
        "study's backward_cost, or 2)",
    )
    if out_help:
        parser.add_argument("--out", type=Path, metavar="PATH", help=out_help)


def _study_of(options):
    """The study of ``--study``, a file or its JSON; None where none is given."""
    from zo.study import load_study, read_study

    text = options.study
    if not text:
        return None
    if not text.lstrip().startswith("{"):
        return read_study(Path(text), check_data=False)
    try:
        return load_study(json.loads(text), check_data=False)
    except json.JSONDecodeError as error:
        raise UserError(f"--study is not JSON: {error}") from None


class Scope(NamedTuple):
    """What --study and the flags beside it say."""

    runs: list[str] | None
    """Those that are read; None: all of the folder."""
    cost: float
    """Forward passes that a backward pass counts as, by the flag, else by the study."""
    claims: bool
    """Whether a claims.csv beside the logs is the study's: one that no longer asks for it left it behind."""


def _scope(options) -> Scope:
    study = _study_of(options)
    if options.backward_cost is not None:
        [*_, cost] = _numbers("backward-cost", options.backward_cost)
    else:
        cost = study.workflow.backward_cost if study else 2.0
    return Scope(study and list(study.runs), cost, study is None or study.workflow.claims)


def add_analyze_flags(parser) -> None:
    """Flags of ``zo analyze``."""
    _folder_flags(
        parser,
        "folder for summary.txt and summary.csv (default: beside the logs); summary.partial.txt while a run "
        "has no outcome",
    )
    parser.add_argument(
        "--format",
        default="text",
        help="what is printed: text, md, csv, json or tex (default text); html writes report.html too",
    )


def analyze(options) -> int:
    """Summarize a folder of CSV logs."""
    from zo.analysis.collect import read_folder
    from zo.analysis.summary import FORMATS, check_format, summarize, write_summary

    check_format(options.format, (*FORMATS, "html"))
    out, (runs, cost, _) = make_folder(options.out or options.folder.parent), _scope(options)
    text = write_summary(
        options.folder, out / "summary.txt", out / "summary.csv", only=runs, backward_cost=cost
    )
    if options.format == "html":
        options.out = out / "report.html"
        return report(options)
    if options.format != "text":
        text = summarize(read_folder(options.folder, runs, backward_cost=cost), options.format)
    print(text, end="")
    return 0


def add_plot_flags(parser) -> None:
    """Flags of ``zo plot``."""
    _folder_flags(parser, "folder for the figures (default: plots/ beside the logs)")
    parser.add_argument("--per-run", action="store_true", help="draw one curve for each run too")
    parser.add_argument("--format", default="png", help="png, svg or pdf (default png)")


def plot(options) -> int:
    """Draw the figures of a folder of CSV logs."""
    from zo.analysis.figures.plots import write_plots

    out, (runs, cost, _) = options.out or options.folder.parent / "plots", _scope(options)
    if options.out:
        make_folder(out, "--out: folder")
    paths = write_plots(
        options.folder,
        out,
        per_run=options.per_run,
        only=runs,
        format=options.format,
        backward_cost=cost,
    )
    print(*paths, sep="\n")
    return 0


def add_stats_flags(parser) -> None:
    """Flags of ``zo stats``."""
    _folder_flags(parser)
    parser.add_argument("--format", default="text", help="text, md, csv, json or tex (default text)")
    parser.add_argument(
        "--targets",
        metavar="L1,L2",
        help="losses, in nats, to measure convergence to (default: chosen from the final losses)",
    )


def stats(options) -> int:
    """Print the statistics of a folder of CSV logs."""
    from zo.analysis.summary import stats_text

    targets = _numbers("targets", options.targets) if options.targets else None
    runs, cost, _ = _scope(options)
    text = stats_text(
        options.folder,
        format=options.format,
        targets=targets,
        backward_cost=cost,
        only=runs,
    )
    print(text, end="")
    return 0


def add_claims_flags(parser) -> None:
    """Flags of ``zo claims``."""
    _folder_flags(parser, "the table (default: claims.csv beside the logs, where the report looks for it)")
    parser.add_argument("--format", default="text", help="text, md, csv, json or tex (default text)")


def claims(options) -> int:
    """Judge the paper's claims by a folder of CSV logs."""
    from zo.analysis.claims.judge import write_claims

    check_out(options.out)
    out, (runs, cost, _) = options.out or options.folder.parent / "claims.csv", _scope(options)
    print(write_claims(options.folder, out, format=options.format, only=runs, backward_cost=cost), end="")
    return 0


def add_report_flags(parser) -> None:
    """Flags of ``zo report``."""
    _folder_flags(parser, "the file (default: report.html beside the logs)")


def report(options) -> int:
    """Write the report of a folder of CSV logs: one HTML file."""
    from zo.analysis.report import write_report

    check_out(options.out)
    out, (runs, cost, claims) = options.out or options.folder.parent / "report.html", _scope(options)
    print(write_report(options.folder, out, only=runs, backward_cost=cost, claims=claims))
    return 0


def _numbers(key: str, text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise UserError(
            f"{key}: {text!r} is not allowed: it must be numbers with commas between them"
        ) from None
