"""``plan``: what a study will take, before it starts."""

import os
import sys
from pathlib import Path

from zo.errors import UserError


def add_plan_flags(parser) -> None:
    """Flags of ``zo plan``."""
    parser.add_argument("study", type=Path, metavar="STUDY.yaml", help="e.g. workflow/studies/paper.yaml")
    parser.add_argument(
        "--gpus", metavar="A,B,...", help="numbers of GPUs to plan for, e.g. 1,4,8; 0: the CPU"
    )
    parser.add_argument(
        "--cores", metavar="N", help="of the machine to plan for (default: this one's; with --gpus enough)"
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="time steps of each kind of run on this machine, and plan with them",
    )
    parser.add_argument("--steps", default="5", metavar="N", help="that --measure times of each (default 5)")
    parser.add_argument(
        "--tflops", metavar="X", help="peak TFLOP/s of a GPU (of a run's CPU threads, without one)"
    )
    parser.add_argument(
        "--utilization", metavar="X", help="part of that peak that is reached (default 0.1 to 0.4)"
    )
    parser.add_argument(
        "--corpus-tokens", metavar="N", help="training tokens of a corpus whose cache is not built yet"
    )
    parser.add_argument("--format", default="text", help="text, md, csv (the runs) or json (default text)")


def plan(options) -> int:
    """Tell what a study will take: passes, hours, disk, memory."""
    from zo.planning.forecast import forecast
    from zo.planning.forecast_table import check_format, present
    from zo.planning.pace import given_flops, paces_of
    from zo.study import read_study

    check_format(options.format)
    study = read_study(options.study)
    flops = given_flops(_number(options, "tflops"), _number(options, "utilization"))
    corpus_tokens = _number(options, "corpus_tokens")
    flow = study.workflow
    machines = [_count_gpus(flow)] if options.gpus is None else _machines(options.gpus)
    here = None if options.gpus and machines[0] else os.cpu_count()  # GPUs that are named may be elsewhere
    cores = _whole("cores", options.cores) if options.cores else here
    steps, on_gpus = _whole("steps", options.steps), bool(machines[0])
    measured = _measure(study, on_gpus, steps) if options.measure else None
    paces = paces_of(Path(study.results), on_gpus, flow.threads, flops, measured)
    print(present(forecast(study, paces, machines, cores, corpus_tokens), options.format), end="")
    return 0


def _count_gpus(flow) -> int:
    """GPUs that the study may use on this machine."""
    from zo.sweep.gpus import choose_gpus

    return len(choose_gpus(flow.gpus)) if flow.gpus_per_run else 0


def _machines(given: str) -> list[int]:
    """Numbers of GPUs; [0] is the CPU alone, which is not planned for together with GPUs."""
    numbers = [_whole("gpus", word, least=0) for word in given.split(",")]
    if 0 in numbers and len(numbers) > 1:
        raise UserError(f"--gpus: {given!r} is not allowed: 0 is the CPU, which is planned for by itself")
    return numbers


def _measure(study, on_gpus: bool, steps: int) -> dict:
    """Seconds of real steps of every class of the runs that are not done; a line for each on stderr."""
    from zo.cli.training import limit_threads
    from zo.planning.pace import classes
    from zo.planning.progress import unfinished

    limit_threads(study.workflow.threads)
    import torch

    from zo.planning.measure import time_steps
    from zo.training.run import pick_device

    if on_gpus and not torch.cuda.is_available():
        raise UserError("--measure: torch sees no GPU here: plan for the CPU with --gpus 0, or give --tflops")
    device = pick_device("cuda" if on_gpus else "cpu")
    found = {}
    todo = classes(unfinished(study))
    for number, (key, spec) in enumerate(todo.items(), start=1):
        found[key] = time_steps(spec, device, steps)
        low, high = min(found[key]), max(found[key])
        print(
            f"{number}/{len(todo)} {spec.name}: {low:.4g} to {high:.4g} s a step", file=sys.stderr, flush=True
        )
    return found


def _number(options, key: str) -> float | None:
    text = getattr(options, key)
    try:
        number = None if text is None else float(text)
    except ValueError:
        number = -1
    if number is not None and not 0 < number < float("inf"):
        raise UserError(f"--{key.replace('_', '-')}: {text!r} is not allowed: it must be a number above 0")
    return number


def _whole(key: str, text: str, least: int = 1) -> int:
    if not text.strip().isdecimal() or int(text) < least:
        raise UserError(f"--{key}: {text!r} is not allowed: a whole number from {least}")
    return int(text)
