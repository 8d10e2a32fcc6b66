"""Commands that read finished logs: ``analyze``, ``plot``, ``stats``."""

import json
from pathlib import Path

from zo.errors import UserError


def _folder_flags(parser, out_help: str | None = None) -> None:
    parser.add_argument("folder", type=Path, help="folder of CSV logs, e.g. results/csv_logs")
    parser.add_argument("--study", metavar="FILE", help="only the runs of this study (a file, or its JSON)")
    if out_help:
        parser.add_argument("--out", type=Path, metavar="DIR", help=out_help)


def _study_runs(options) -> list[str] | None:
    """Names of the runs of ``--study``; None for all of the folder."""
    from zo.study import load_study, read_study

    text = options.study
    if not text:
        return None
    if not text.lstrip().startswith("{"):
        return list(read_study(Path(text)).runs)
    try:
        return list(load_study(json.loads(text)).runs)
    except json.JSONDecodeError as error:
        raise UserError(f"--study is not JSON: {error}") from None


def add_analyze_flags(parser) -> None:
    """Flags of ``zo analyze``."""
    _folder_flags(
        parser,
        "where summary.txt and summary.csv go (default: beside the folder); summary.partial.txt while a run "
        "has no outcome",
    )


def analyze(options) -> int:
    """Summarize a folder of CSV logs."""
    from zo.analysis.summary import write_summary
    from zo.files import make_folder

    out = make_folder(options.out or options.folder.parent)
    files = (out / "summary.txt", out / "summary.csv")
    print(write_summary(options.folder, *files, only=_study_runs(options)), end="")
    return 0


def add_plot_flags(parser) -> None:
    """Flags of ``zo plot``."""
    _folder_flags(parser, "where the figures go (default: plots/ beside the folder)")
    parser.add_argument("--per-run", action="store_true", help="draw one curve for each run too")


def plot(options) -> int:
    """Draw the figures of a folder of CSV logs."""
    from zo.analysis.plots import write_plots

    out = options.out or options.folder.parent / "plots"
    for path in write_plots(options.folder, out, per_run=options.per_run, only=_study_runs(options)):
        print(path)
    return 0


def add_stats_flags(parser) -> None:
    """Flags of ``zo stats``."""
    _folder_flags(parser)
    parser.add_argument("--format", default="text", help="text, md, csv or json (default text)")
    parser.add_argument(
        "--targets", metavar="L1,L2", help="losses to measure convergence to (default: chosen)"
    )


def stats(options) -> int:
    """Print the statistics of a folder of CSV logs."""
    from zo.analysis.summary import stats_text

    targets = _numbers("targets", options.targets) if options.targets else None
    print(
        stats_text(options.folder, format=options.format, targets=targets, only=_study_runs(options)), end=""
    )
    return 0


def _numbers(key: str, text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise UserError(
            f"{key}: {text!r} is not allowed: it must be numbers with commas between them"
        ) from None
