"""The command line: what each door takes, and how a user's mistake ends.

A UserError is one line on stderr and exit status 2. Everything heavy is imported by the door that needs it.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import UnionType
from typing import Union, get_args, get_origin

from zo.errors import UserError

PROGRAM = "zo"
log = logging.getLogger("zo")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    parser = build_parser()
    options = parser.parse_args(
        [_hyphens(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    )
    try:
        return options.door(options) or 0
    except UserError as error:
        print(f"{PROGRAM} {options.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `zo stats ... | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
        return 0


def build_parser() -> argparse.ArgumentParser:
    """All commands and their flags."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="Pretrain small language models with zeroth- and first-order methods, and compare them.",
        epilog="Flags may be spelled with - or _. `zo COMMAND --help` says more.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, door, add_flags, help_text in (
        ("train", _train, _train_flags, "train one run, as a sweep would"),
        ("sweep", _sweep, _sweep_flags, "run a grid given by flags through the Snakemake workflow"),
        ("cache", _cache, _cache_flags, "build the token cache that runs read"),
        ("analyze", _analyze, _analyze_flags, "summarize a folder of CSV logs"),
        ("plot", _plot, _plot_flags, "draw the figures of a folder of CSV logs"),
        ("stats", _stats, _stats_flags, "print the statistics of a folder of CSV logs"),
        ("bench", _bench, _bench_flags, "time a ZO step against inference, an FO step and MeZO"),
        (
            "replay",
            _replay,
            _replay_flags,
            "rebuild a ZO run's final weights from its scalar log",
        ),
        ("doctor", _doctor, _doctor_flags, "print versions, devices, memory, and what is missing"),
        ("crash", _crash, _crash_flags, "(for the workflow) record a training job that failed"),
    ):
        description = help_text[0].upper() + help_text[1:] + "."
        command = commands.add_parser(name, help=help_text, description=description, allow_abbrev=False)
        command.set_defaults(door=door)
        add_flags(command)
    return parser


def _hyphens(word: str) -> str:
    """--batch_size and --batch-size are one flag; values stay as they are."""
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value


def _add_setting(parser, key: str, info, required: bool = False) -> None:
    """Add one field of a pydantic model as a flag; values stay text, the model reads and checks them."""
    flag = "--" + key.replace("_", "-")
    default = "" if info.is_required() or info.default is None else f" (default {info.default})"
    text = f"{info.description}{default}".replace("%", "%%")
    if info.annotation is bool:
        parser.add_argument(flag, dest=key, action=argparse.BooleanOptionalAction, default=None, help=text)
        return
    parser.add_argument(flag, dest=key, metavar=_metavar(info.annotation), required=required, help=text)


def _metavar(annotation) -> str:
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(kind for kind in get_args(annotation) if kind is not type(None))
    kind = get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation
    return {int: "N", float: "X"}.get(kind, "TEXT")


# --- train ---------------------------------------------------------------------------------------


def _train_flags(parser) -> None:
    from zo.spec import RunSpec

    for key, info in RunSpec.model_fields.items():
        _add_setting(parser, key, info)
    parser.add_argument(
        "--parallel-q-computation",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="evaluate several directions in one forward pass: plan parallel, or with --no- sequential",
    )
    parser.add_argument("--spec", metavar="JSON", help="a whole spec as JSON text, or a spec.json file")
    parser.add_argument(
        "--job-log",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="append log lines to job_logs/<run>.log (the workflow does that itself)",
    )
    parser.add_argument(
        "--keep",
        choices=("checkpoint", "weights", "nothing"),
        default="checkpoint",
        help="of a finished run: weights and optimizer state, weights alone, or neither (default checkpoint)",
    )
    parser.add_argument("--attempt", type=int, default=1, help="(for the workflow) which one this is")
    _results_flag(parser)
    _machine_flags(parser)


def _machine_flags(parser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<index> (default auto)")
    parser.add_argument("--gpus", type=int, metavar="N", help="take N free GPUs of this machine; 0: the CPU")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: torch's own choice)")


def _results_flag(parser) -> None:
    parser.add_argument(
        "--results", type=Path, default=Path("results"), metavar="DIR", help="(default results)"
    )


def _train(options) -> int:
    from zo.gpus import take_gpus
    from zo.record import RunFiles

    spec = _read_spec(options)
    files = RunFiles(options.results, spec.name)
    files.make_folders()
    _start_logging(files.job_log if options.job_log else None)
    if options.gpus is not None:
        taken = take_gpus(options.gpus)
        log.info("GPUs: %s", ",".join(taken) or "none")
    _limit_threads(options.threads)
    from zo.causes import TRY_AGAIN, is_machine_failure
    from zo.train import train

    by_hand = options.job_log  # the workflow decides itself what is out of date
    try:
        train(
            spec,
            options.results,
            device=options.device,
            threads=options.threads,
            replace=not by_hand,
            keep=options.keep,
            retry=options.attempt > 1,
        )
    except (UserError, SystemExit):
        raise
    except Exception as error:
        if is_machine_failure(error):
            log.error("%s: stopped: %s: another attempt goes on from the last checkpoint", spec.name, error)
            return TRY_AGAIN
        log.exception("%s: crashed", spec.name)
        return 1
    return 0


def _read_spec(options):
    from zo.spec import LENGTHS, RunSpec

    given = {key: value for key in RunSpec.model_fields if (value := getattr(options, key)) is not None}
    if options.spec:
        extra = [*given, *(["parallel_q_computation"] if options.parallel_q_computation is not None else [])]
        if extra:
            raise UserError(f"--spec is a whole spec: drop --{extra[0]}")
        text = options.spec if options.spec.lstrip().startswith("{") else _read_text(Path(options.spec))
        return RunSpec.from_json(text)
    if "mode" not in given:
        raise UserError("--mode is missing: it is the one flag without a default")
    if options.parallel_q_computation is not None:
        given["plan"] = "parallel" if options.parallel_q_computation else "sequential"
    if not any(key in given for key in LENGTHS):
        given["epochs"] = 1
    spec = RunSpec.make(**given)
    for flag in ("parallel_q_computation", "parallel_batch_size"):
        if getattr(options, flag) is not None and not spec.query_budget_q:
            raise UserError(f"--{flag} or its --no- form: mode {spec.mode} makes no queries: drop it")
    return spec


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _start_logging(path: Path | None) -> None:
    """Log lines to stderr and, appended, to the run's log file; warnings too."""
    handlers = [logging.StreamHandler(), *([logging.FileHandler(path)] if path else [])]
    for handler in handlers:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.captureWarnings(True)
    for name in ("zo", "py.warnings"):
        logging.getLogger(name).handlers = handlers
    logging.getLogger("zo").setLevel(logging.INFO)


def _limit_threads(threads: int | None) -> None:
    """Every library's pool gets the run's threads and no more; before any of them is imported."""
    if threads is None:
        return
    if threads < 1:
        raise UserError(f"threads: {threads} is not allowed: it must be 1 or more")
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[variable] = str(threads)


# --- sweep ---------------------------------------------------------------------------------------


def _sweep_flags(parser) -> None:
    from zo.spec import AXES, RunSpec
    from zo.study import PLURAL

    parser.add_argument(
        "--study", default="sweep", help="its name: results go to results/<study>/ (default sweep)"
    )
    for key, info in RunSpec.model_fields.items():
        flag = "--" + PLURAL.get(key, key).replace("_", "-")
        many = ", a list with commas" if key in AXES else ""
        text = f"{info.description}{many}".replace("%", "%%")
        parser.add_argument(flag, dest=key, metavar="A,B,..." if many else "X", help=text)
    parser.add_argument("--parallel", type=int, default=4, metavar="N", help="runs at once (default 4)")
    parser.add_argument("--gpus", metavar="IDS", help="GPU ids to use, e.g. 0,1,2,3; none: the CPU")
    parser.add_argument(
        "--threads", type=int, default=1, metavar="N", help="CPU threads of one run (default 1)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="a small grid that takes about a minute on a CPU"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the runs and stop")
    parser.add_argument("snakemake", nargs="*", metavar="-- ARG", help="passed on to snakemake")


def _sweep(options) -> int:
    from zo.sweep import start_sweep

    return start_sweep(options)


# --- cache ---------------------------------------------------------------------------------------


def _cache_flags(parser) -> None:
    from zo.spec import RunSpec

    for key in ("dataset", "dataset_revision", "max_samples", "text_column", "tokenizer", "vocab_size"):
        _add_setting(parser, key, RunSpec.model_fields[key])
    parser.add_argument("--spec", metavar="JSON", help="all of the above as JSON (what the workflow gives)")
    for split in ("train", "validation"):
        flag = f"--least-{split}-tokens"
        parser.add_argument(flag, type=int, default=0, metavar="N", help="fail if the corpus gives fewer")
    _results_flag(parser)


def _cache(options) -> int:
    from zo.dataset import DatasetSpec, build_cache, open_cache
    from zo.files import make_folder
    from zo.spec import RunSpec, dataset_spec

    if options.spec:
        wanted = DatasetSpec.from_json(options.spec)
    else:
        given = {
            key: value for key in RunSpec.model_fields if (value := getattr(options, key, None)) is not None
        }
        wanted = dataset_spec(RunSpec.make(mode="FO", max_steps=1, **given))
    folder = build_cache(wanted, make_folder(options.results / "cache"))
    for split, tokens in open_cache(folder).meta["tokens"].items():
        if tokens < (least := getattr(options, f"least_{split}_tokens")):
            raise UserError(
                f"dataset {wanted.dataset!r}: its {split} text has {tokens} tokens, but the longest batch "
                f"needs {least}: take a smaller block_size, batch_size or validation_block_size"
            )
    print(folder)
    return 0


# --- analysis ------------------------------------------------------------------------------------


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


def _analyze_flags(parser) -> None:
    _folder_flags(parser, "where summary.txt and summary.csv go (default: beside the folder)")


def _analyze(options) -> int:
    from zo.analysis.summary import write_summary
    from zo.files import make_folder

    out = make_folder(options.out or options.folder.parent)
    write_summary(options.folder, out / "summary.txt", out / "summary.csv", only=_study_runs(options))
    print((out / "summary.txt").read_text(), end="")
    return 0


def _plot_flags(parser) -> None:
    _folder_flags(parser, "where the figures go (default: plots/ beside the folder)")
    parser.add_argument("--per-run", action="store_true", help="draw one curve for each run too")


def _plot(options) -> int:
    from zo.analysis.plots import write_plots

    out = options.out or options.folder.parent / "plots"
    for path in write_plots(options.folder, out, per_run=options.per_run, only=_study_runs(options)):
        print(path)
    return 0


def _stats_flags(parser) -> None:
    _folder_flags(parser)
    parser.add_argument("--format", default="text", help="text, md, csv or json (default text)")
    parser.add_argument(
        "--targets", metavar="L1,L2", help="losses to measure convergence to (default: chosen)"
    )


def _stats(options) -> int:
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


# --- bench ---------------------------------------------------------------------------------------


def _bench_flags(parser) -> None:
    parser.add_argument("--model-size", default="20M", help="(default 20M)")
    parser.add_argument("--architecture", default="gpt2", help="gpt2 or llama (default gpt2)")
    parser.add_argument("--vocab-size", type=int, default=50257, metavar="N", help="(default 50257)")
    parser.add_argument("--batch-size", type=int, default=4, metavar="N", help="sequences (default 4)")
    parser.add_argument("--block-size", type=int, default=64, metavar="N", help="tokens of each (default 64)")
    parser.add_argument("--queries", default="1,4,8,32", metavar="A,B,...", help="(default 1,4,8,32)")
    parser.add_argument("--dtype", default="fp32", help="of the weights: fp32 or bf16 (default fp32)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default auto)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), metavar="N", help="(default: all)")
    parser.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="turns of each contender (default 3)"
    )
    parser.add_argument(
        "--memory-column", action=argparse.BooleanOptionalAction, default=True, help="peak memory"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="save the records")


def _whole_number(key: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{key}: {text!r} is not allowed: it must be a whole number") from None


def _bench(options) -> int:
    from zo.bench import DTYPES, Setting, run_bench
    from zo.errors import unknown
    from zo.train import pick_device

    if options.dtype not in DTYPES:
        raise unknown("dtype", options.dtype, DTYPES)
    queries = [_whole_number("queries", word) for word in options.queries.split(",")]
    for key, value in {
        "queries": min(queries),
        "rounds": options.rounds,
        "batch_size": options.batch_size,
    }.items():
        if value < 1:
            raise UserError(f"{key}: {value} is not allowed: it must be 1 or more")
    shared = ("model_size", "architecture", "vocab_size", "batch_size", "block_size", "dtype", "threads")
    setting = Setting(
        **{key: getattr(options, key) for key in shared}, device=str(pick_device(options.device))
    )
    run_bench(setting, sorted({1, *queries}), options.rounds, options.memory_column, options.out)
    return 0


# --- doctor, crash -------------------------------------------------------------------------------


def _doctor_flags(parser) -> None:
    parser.add_argument("--dataset", metavar="NAME", help="try to read one document of this corpus")


def _doctor(options) -> int:
    from zo.doctor import examine

    return examine(options.dataset)


def _crash_flags(parser) -> None:
    parser.add_argument("--run", required=True)
    parser.add_argument("--exit", type=int, required=True, metavar="STATUS")
    parser.add_argument("--last-attempt", type=int, required=True, metavar="0|1")
    parser.add_argument("--record", type=int, default=1, metavar="0|1", help="0: a run outside the grid")
    _results_flag(parser)


def _crash(options) -> int:
    from zo.crash import handle_crash

    last, record = bool(options.last_attempt), bool(options.record)
    return handle_crash(options.results, options.run, options.exit, last, record)


# --- replay --------------------------------------------------------------------------------------


def _replay_flags(parser) -> None:
    parser.add_argument("folder", type=Path, help="of the run, e.g. results/runs/<run>")
    parser.add_argument("--out", type=Path, metavar="FILE.safetensors", help="write the weights there")
    parser.add_argument("--device", help="(default: the kind that the run used)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: as the run)")


def _replay(options) -> int:
    from zo.replay import replay

    _limit_threads(options.threads)
    found = replay(options.folder, device=options.device, threads=options.threads, out=options.out)
    print(found.report)
    return 0 if found.equal else 1
