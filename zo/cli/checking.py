"""Commands about this machine: ``bench`` and ``doctor``."""

import argparse
import os
from dataclasses import replace
from pathlib import Path

from zo.cli.flags import split_words
from zo.errors import UserError
from zo.files import check_out


def add_bench_flags(parser) -> None:
    """Flags of ``zo bench``."""
    from zo.sizes import GPT2_VOCABULARY, SIZES

    text = f"model preset: {', '.join(SIZES)} (default 20M)"
    parser.add_argument("--model-size", default="20M", metavar="TEXT", help=text)
    parser.add_argument("--architecture", default="gpt2", help="gpt2 or llama (default gpt2)")
    parser.add_argument(
        "--vocab-size",
        type=int,
        default=GPT2_VOCABULARY,
        metavar="N",
        help="rows of the embedding and the head, from 257 (default GPT-2's, %(default)s)",
    )
    parser.add_argument("--batch-size", type=int, default=4, metavar="N", help="sequences (default 4)")
    parser.add_argument("--block-size", type=int, default=64, metavar="N", help="tokens of each (default 64)")
    text = "values of q, the directions of a step (default %(default)s)"
    parser.add_argument("--queries", default="1,4,8,32", metavar="A,B,...", help=text)
    parser.add_argument("--dtype", default="fp32", help="of the weights: fp32 or bf16 (default fp32)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default auto)")
    text = "CPU threads, of each process (default: this machine's CPUs)"
    parser.add_argument("--threads", type=int, default=os.cpu_count(), metavar="N", help=text)
    parser.add_argument(
        "--rounds", type=int, default=3, metavar="N", help="turns of each contender (default 3)"
    )
    parser.add_argument(
        "--memory-column",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure each row's peak memory too, in a process of its own; on unless --no-memory-column",
    )
    parser.add_argument(
        "--chunks", action="store_true", help="instead: the parallel plan with 1, 2, 4, 8 in flight"
    )
    parser.add_argument("--memory", action="store_true", help="instead: peaks of FO and ZO by model size")
    parser.add_argument(
        "--ranks", type=int, metavar="N", help="instead: what N processes gain over one, --threads each"
    )
    text = "model presets of --memory (default %(default)s)"
    parser.add_argument("--sizes", default="20M,200M,500M,1B", metavar="A,B,...", help=text)
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="save the records (default: nowhere)")


def _whole_number(key: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{key}: {text!r} is not allowed: it must be a whole number") from None


def bench(options) -> int:
    """Time a ZO step against inference, an FO step and MeZO."""
    from zo.bench.contenders import DTYPES, Setting
    from zo.bench.memory import run_memory_bench
    from zo.bench.timing import run_bench
    from zo.errors import unknown
    from zo.training.run import pick_device

    check_out(options.out)
    if options.dtype not in DTYPES:
        raise unknown("dtype", options.dtype, DTYPES)
    queries = [_whole_number("queries", word) for word in options.queries.split(",")]
    for key, value in {
        "queries": min(queries),
        "rounds": options.rounds,
        "threads": options.threads,
    }.items():
        if value < 1:
            raise UserError(f"{key}: {value} is not allowed: it must be 1 or more")
    shared = ("model_size", "architecture", "vocab_size", "batch_size", "block_size", "dtype", "threads")
    setting = Setting(
        **{key: getattr(options, key) for key in shared}, device=str(pick_device(options.device))
    )
    sizes = split_words(options.sizes) if options.memory else [options.model_size]
    for size in sizes:
        replace(setting, model_size=size).run_spec(q=1)
    if options.memory:
        run_memory_bench(setting, sizes, options.out)
        return 0
    if options.ranks is not None:
        return _bench_ranks(setting, options.ranks, queries, options.rounds, options.out)
    column = options.memory_column and not options.chunks
    run_bench(setting, sorted({1, *queries}), options.rounds, column, options.chunks, options.out)
    return 0


def _bench_ranks(setting, ranks: int, queries: list[int], rounds: int, out: Path | None) -> int:
    from zo.bench.ranks import run_ranks_bench

    if ranks < 2:
        raise UserError(f"ranks: {ranks} is not allowed: one process is compared with 2 or more")
    return run_ranks_bench(setting, ranks, sorted(set(queries)), rounds, out)


def add_doctor_flags(parser) -> None:
    """Flags of ``zo doctor``."""
    parser.add_argument("--dataset", metavar="NAME", help="try to read one document of this corpus")
    text = "look at what this study would take here: disk, memory, GPUs, corpora (the workflow does it too)"
    parser.add_argument("--study", type=Path, metavar="FILE", help=text)


def doctor(options) -> int:
    """Print versions, devices, memory, and what is missing."""
    from zo.sweep.doctor import examine

    return examine(options.dataset, options.study)
