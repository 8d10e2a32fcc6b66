"""Commands that make a run, what it reads, or its weights again: ``train``, ``cache``, ``replay``."""

import argparse
import logging
import os
import sys
from pathlib import Path

from zo.cli.flags import add_setting, read_wholes, results_flag, setting_groups
from zo.errors import UserError
from zo.files import check_out

log = logging.getLogger("zo")


def add_train_flags(parser) -> None:
    """Flags of ``zo train``."""
    from zo.spec import RunSpec
    from zo.study import KEEP

    for group, keys in setting_groups(parser):
        for key in keys:
            add_setting(group, key, RunSpec.model_fields[key])
    group.add_argument(  # to the last group, the plan's
        "--parallel-q-computation",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="evaluate several directions in one forward pass: plan parallel, or with --no- sequential",
    )
    group = parser.add_argument_group("the run's files")
    group.add_argument("--spec", metavar="JSON", help="a whole spec as JSON text, or a spec.json file")
    group.add_argument(
        "--job-log",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="append log lines to job_logs/<run>.log (the workflow does that itself)",
    )
    group.add_argument(
        "--keep",
        choices=KEEP,
        default=KEEP[0],
        help="of a finished run: weights and optimizer state, weights alone, or neither (default checkpoint)",
    )
    group.add_argument(
        "--keep-steps",
        metavar="N,...",
        default="",
        help="steps whose trained weights are kept too, in runs/<run>/kept/, for `zo probe --at`",
    )
    group.add_argument(
        "--attempt", type=int, default=1, metavar="N", help="(for the workflow) which one this is (default 1)"
    )
    results_flag(group)
    machine_flags(parser.add_argument_group("this machine"), " of each rank", ", shared by all ranks")


def machine_flags(parser, of_each: str = "", shared: str = "") -> None:
    """--device, --gpus and --threads; the words say what ranks have of them."""
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:<index> (default auto)")
    parser.add_argument(
        "--gpus",
        type=int,
        metavar="N",
        help=f"how many free GPUs of this machine to take{shared}: a number, no ids; 0: the CPU "
        "(default: none are taken, --device says)",
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", help=f"CPU threads{of_each} (default: torch's own choice)"
    )


def train(options) -> int:
    """Train one run, as a sweep would."""
    from zo.distributed.place import find_place
    from zo.sweep.gpus import take_gpus
    from zo.training.record import RunFiles

    spec, place = read_spec(options), find_place()
    files = RunFiles(options.results, spec.name)
    files.make_folders()
    _start_logging(files.job_log if options.job_log else None, place.rank if place else 0)
    if options.gpus is not None:
        taken = take_gpus(options.gpus)
        log.info("GPUs: %s", ",".join(taken) or "none (on the CPU)")
        if taken:
            _own_compile_caches(files.folder)
    limit_threads(options.threads)
    if spec.ranks > 1 and place is None:
        return _launch_ranks(spec, options)
    return _train_here(spec, options, place)


def _launch_ranks(spec, options) -> int:
    """Start the run's ranks on this machine: this command again, as many times."""
    from zo.distributed.launch import launch

    command = [sys.executable, "-m", "zo", "train", "--spec", spec.to_json()]
    for flag in ("results", "device", "keep", "keep_steps", "attempt", "threads"):
        if (value := getattr(options, flag)) is not None:
            command += [f"--{flag}", str(value)]
    return launch(spec.ranks, command if options.job_log else [*command, "--no-job-log"])


def _train_here(spec, options, place) -> int:
    """Train in this process, one of several where it has a ``place`` among them."""
    from zo.causes import TRY_AGAIN, RankLost, is_machine_failure
    from zo.distributed.ranks import join
    from zo.training.train import train

    by_hand = options.job_log  # the workflow decides itself what is out of date
    if options.device == "auto" and (place is None or place.rank == 0):
        _warn_of_lost_gpus(spec.name, options.results)
    try:
        with join(place) as ranks:
            if ranks.count != spec.ranks:
                log.info("%d processes share the run, whose spec says ranks %d", ranks.count, spec.ranks)
            train(
                spec,
                options.results,
                device=options.device,
                threads=options.threads,
                replace=not by_hand,
                keep=options.keep,
                keep_steps=read_wholes(options.keep_steps, "keep-steps"),
                retry=options.attempt > 1,
                ranks=ranks,
            )
    except (UserError, SystemExit):
        raise
    except Exception as error:
        if is_machine_failure(error):
            one_of_many = isinstance(error, RankLost) and place.rank > 0  # the first one says it
            say = log.info if one_of_many else log.error
            say("%s: stopped: %s: another attempt goes on from the last checkpoint", spec.name, error)
            return TRY_AGAIN
        log.exception("%s: crashed", spec.name)
        return 1
    return 0


def _warn_of_lost_gpus(run: str, results: Path) -> None:
    """Say, in the sweep's log too, that a run beside GPUs takes the CPU: it is slower by orders."""
    import torch

    from zo.sweep.gpus import visible_gpus
    from zo.training.job import append_event

    if torch.cuda.is_available():
        return
    if gpus := visible_gpus():
        found = "given" if "CUDA_VISIBLE_DEVICES" in os.environ else "listed by nvidia-smi"
        build = f"torch {torch.__version__} (CUDA build {torch.version.cuda})"
        text = f"{run}: GPU {','.join(gpus)} is {found}, but {build} sees none: it runs on the CPU"
        log.warning("%s", text)
        append_event(results, f"warning: {text}")


def read_spec(options):
    from zo.lengths import LENGTHS
    from zo.spec import RunSpec, uses

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
    if unread := [f"--{key}" for key in given if not uses(spec.mode, key)]:
        print(f"zo train: mode {spec.mode} does not read {', '.join(unread)}: left out", file=sys.stderr)
    for flag in ("parallel_q_computation", "parallel_batch_size"):
        if getattr(options, flag) is not None and not spec.query_budget_q:
            raise UserError(f"--{flag} or its --no- form: mode {spec.mode} makes no queries: drop it")
    return spec


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def _start_logging(path: Path | None, rank: int = 0) -> None:
    """Log lines to stderr and, appended, to the run's log file; warnings too.

    Ranks but the first would repeat it: they say what is wrong, and who they are.
    """
    handlers = [logging.StreamHandler(), *([logging.FileHandler(path)] if path else [])]
    for handler in handlers:
        name = f"rank {rank}: " if rank else ""
        handler.setFormatter(logging.Formatter(f"%(asctime)s {name}%(message)s", "%Y-%m-%d %H:%M:%S"))
    logging.captureWarnings(True)
    for name in ("zo", "py.warnings"):
        logging.getLogger(name).handlers = handlers
    logging.getLogger("zo").setLevel(logging.WARNING if rank else logging.INFO)
    logging.getLogger("py.warnings").setLevel(logging.ERROR if rank else logging.WARNING)


POOLS = ["OMP", "MKL", "OPENBLAS", "BLIS", "NUMEXPR", "NUMBA", "VECLIB_MAXIMUM", "RAYON"]
"""Thread pools that a library of a run may start: OpenMP (torch, Arrow), BLAS, numexpr, numba, tokenizers."""


def limit_threads(threads: int | None) -> None:
    """Every library's pool gets the run's threads and no more; before any of them is imported."""
    if threads is None:
        return
    if threads < 1:
        raise UserError(f"threads: {threads} is not allowed: it must be 1 or more")
    for pool in POOLS:
        os.environ[f"{pool}_THREADS" if pool.endswith("MAXIMUM") else f"{pool}_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = str(threads > 1).lower()


def _own_compile_caches(folder: Path) -> None:
    """Keep what Triton and Inductor compile in the run's folder, unless the user says where.

    Their default is one folder a user. Jobs that start together would compile the same kernels into it at
    once, and on a shared file system one reads what another has half written.
    """
    for variable in ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        os.environ.setdefault(variable, str((folder / "compiled" / variable.split("_")[0].lower()).resolve()))


def add_cache_flags(parser) -> None:
    """Flags of ``zo cache``."""
    from zo.spec import RunSpec

    for key in ("dataset", "dataset_revision", "max_samples", "text_column", "tokenizer", "vocab_size"):
        add_setting(parser, key, RunSpec.model_fields[key])
    parser.add_argument("--spec", metavar="JSON", help="all of the above as JSON (what the workflow gives)")
    for split in ("train", "validation"):
        flag = f"--least-{split}-tokens"
        parser.add_argument(flag, type=int, default=0, metavar="N", help="fail if the corpus gives fewer")
    results_flag(parser)


def cache(options) -> int:
    """Build the token cache that runs read."""
    from zo.data.dataset import DatasetSpec, build_cache, open_cache
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


def add_replay_flags(parser) -> None:
    """Flags of ``zo replay``."""
    parser.add_argument("folder", type=Path, help="of the run, e.g. results/runs/<run>")
    parser.add_argument("--out", type=Path, metavar="FILE.safetensors", help="write the weights there")
    parser.add_argument("--device", help="cpu or cuda (default: the run's own)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads (default: as the run)")


def replay(options) -> int:
    """Rebuild a ZO run's final weights from its scalar log; 1 where they differ from the run's own."""
    from zo.training.replay import replay

    check_out(options.out)
    limit_threads(options.threads)
    found = replay(options.folder, device=options.device, threads=options.threads, out=options.out)
    print(found.report)
    return 0 if found.equal else 1
