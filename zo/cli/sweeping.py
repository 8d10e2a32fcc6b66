"""Commands about a sweep as a whole: ``sweep``, ``status``, ``pack``, ``prune``, ``crash``."""

from pathlib import Path

from zo.cli.flags import add_setting, describe_setting, results_flag, setting_groups
from zo.errors import UserError, unknown
from zo.files import check_out


def add_sweep_flags(parser) -> None:
    """Flags of ``zo sweep``."""
    from zo.spec import AXES, RunSpec
    from zo.study import PLURAL, REQUIRED, Workflow

    parser.add_argument(
        "--study", default="sweep", help="its name: results go to results/<study>/ (default sweep)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a grid of a minute on a CPU: FO, ZO with q = 1 and 8, Frozen; further flags change it",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the runs and stop")
    for group, keys in setting_groups(parser):
        for key in keys:
            name, many = PLURAL.get(key, key), key in AXES
            default = "required, but with --quick" if name in REQUIRED else None
            text = describe_setting(RunSpec.model_fields[key], many, default)
            flag = "--" + name.replace("_", "-")
            group.add_argument(flag, dest=key, metavar="A,B,..." if many else "X", help=text)
    _machine_flags(parser.add_argument_group("this machine"))
    group = parser.add_argument_group("how the study runs")
    for key, info in Workflow.model_fields.items():
        if key not in ("study", "gpus", "threads"):  # they mean more here, and have flags already
            add_setting(group, key, info)
    parser.add_argument("snakemake", nargs="*", metavar="-- ARG", help="passed on to snakemake")


def _machine_flags(parser) -> None:
    parser.add_argument("--parallel", type=int, default=4, metavar="N", help="runs at once (default 4)")
    text = "ids of the GPUs to use, not how many: 0,1,2,3; none: the CPU (default: all that are visible)"
    parser.add_argument("--gpus", metavar="IDS", help=text)
    parser.add_argument(
        "--threads", type=int, default=1, metavar="N", help="CPU threads of one run (default 1)"
    )


def sweep(options) -> int:
    """Run a grid given by flags through the Snakemake workflow."""
    from zo.sweep.start import start_sweep

    return start_sweep(options)


def _study_folder(parser) -> None:
    parser.add_argument(
        "results", type=Path, nargs="?", default=Path("results"), help="a study's folder (default results)"
    )


def add_status_flags(parser) -> None:
    """Flags of ``zo status``."""
    _study_folder(parser)
    parser.add_argument("--watch", action="store_true", help="keep it on the screen until Ctrl-C")
    parser.add_argument("--format", default="text", help="text or json (default text)")


def status(options) -> int:
    """Show how far every run of a sweep is."""
    from zo.sweep.status_table import print_status, watch_status

    if options.format not in ("text", "json"):
        raise unknown("format", options.format, ("text", "json"))
    if options.watch:
        if options.format != "text":
            raise UserError(f"--format {options.format}: --watch shows a table: drop one of the two")
        watch_status(options.results)
    print_status(options.results, options.format)
    return 0


def add_pack_flags(parser) -> None:
    """Flags of ``zo pack``."""
    _study_folder(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.tar.gz", help="the archive")
    parser.add_argument("--checkpoints", action="store_true", help="weights and checkpoints too")


def pack(options) -> int:
    """Pack a study's specs, logs, summary and plots into one archive."""
    from zo.sweep.archive import pack

    check_out(options.out)
    count, size = pack(options.results, options.out, options.checkpoints)
    print(f"{options.out}: {count} files, {size:,} bytes")
    return 0


def add_prune_flags(parser) -> None:
    """Flags of ``zo prune``."""
    from zo.sweep.prune import KINDS

    _study_folder(parser)
    parser.add_argument("--dry-run", action="store_true", help="print what would go, delete nothing")
    text = f"what stays: kinds ({', '.join(KINDS)}) or runs ('ZO_*'); a list with commas"
    parser.add_argument("--keep", metavar="A,B,...", help=text)
    parser.add_argument("--weights", action="store_true", help="delete the final weights too")
    parser.add_argument("--caches", action="store_true", help="delete the token caches too")


def prune(options) -> int:
    """Delete what finished runs no longer need; print what, and how many bytes."""
    from zo.sweep.prune import ON_REQUEST, prune

    keep = options.keep.split(",") if options.keep else []
    also = [kind for kind in ON_REQUEST if getattr(options, kind)]
    doomed = prune(options.results, keep, also, dry_run=options.dry_run)
    for each in doomed:
        print(f"{each.size:>14,}  {each.kind:<11}  {each.path}")
    verb = "would be deleted" if options.dry_run else "deleted"
    print(f"{sum(each.size for each in doomed):>14,}  bytes {verb}")
    return 0


def add_crash_flags(parser) -> None:
    """Flags of ``zo crash``."""
    parser.add_argument("--run", required=True, help="the run's name")
    parser.add_argument("--exit", type=int, required=True, metavar="STATUS", help="that its job ended with")
    parser.add_argument(
        "--last-attempt", type=int, required=True, metavar="0|1", help="1: there will be no other"
    )
    parser.add_argument("--record", type=int, default=1, metavar="0|1", help="0: a run outside the grid")
    results_flag(parser)


def crash(options) -> int:
    """Record a training job that failed (for the workflow)."""
    from zo.training.crash import handle_crash

    last, record = bool(options.last_attempt), bool(options.record)
    return handle_crash(options.results, options.run, options.exit, last, record)
