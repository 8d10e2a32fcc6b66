"""``probe``: a run's estimates against the exact gradient."""

from dataclasses import replace
from pathlib import Path

from zo.cli.flags import read_wholes, split_words
from zo.errors import UserError
from zo.files import check_out


def add_probe_flags(parser) -> None:
    """Flags of ``zo probe``."""
    from zo.cli.training import machine_flags

    parser.add_argument("folder", type=Path, help="of the run, e.g. results/runs/<run>")
    parser.add_argument(
        "--at",
        metavar="LIST",
        default="end",
        help="start, end and steps whose weights were kept: start,100,end (default end)",
    )
    parser.add_argument(
        "--scopes", metavar="LIST", default="", help="e.g. full,norms,block0 (default: the run's)"
    )
    parser.add_argument(
        "--queries", metavar="LIST", default="1,2,4,8,16,32", help="values of q (default %(default)s)"
    )
    parser.add_argument(
        "--directions",
        type=int,
        metavar="N",
        default=64,
        help="drawn at each batch: N/q estimates of every q are made of them (default 64)",
    )
    parser.add_argument(
        "--batches", type=int, metavar="N", default=4, help="the next ones after the run's own (default 4)"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE.csv", help="the rows (default results/probes/<run>.csv)"
    )
    machine_flags(parser)


def probe(options) -> int:
    """Measure a run's ZO estimates against the exact gradient and their laws."""
    from zo.cli.training import limit_threads
    from zo.sweep.gpus import take_gpus

    check_out(options.out)
    queries = read_wholes(options.queries, "queries")
    for flag in ("directions", "batches"):
        read_wholes(str(getattr(options, flag)), flag)
    if not queries or max(queries) > options.directions:
        raise UserError(f"--directions {options.directions} is too few for --queries {options.queries}")
    if options.gpus is not None:
        take_gpus(options.gpus)
    limit_threads(options.threads)
    from zo.training.probe_run import of_run, probe_run, read_run

    spec, _ = read_run(options.folder)
    settings = replace(of_run(spec), queries=queries, directions=options.directions)
    path = probe_run(
        options.folder,
        scopes=split_words(options.scopes),
        places=split_words(options.at),
        batches=options.batches,
        settings=settings,
        device=options.device,
        threads=options.threads,
        out=options.out,
    )
    print(path)
    return 0
