"""Commands about this machine: ``bench`` and ``doctor``."""

import argparse
import os
from pathlib import Path

from zo.errors import UserError


def add_bench_flags(parser) -> None:
    """Flags of ``zo bench``."""
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
    parser.add_argument(
        "--chunks", action="store_true", help="instead: the parallel plan with 1, 2, 4, 8 in flight"
    )
    parser.add_argument("--memory", action="store_true", help="instead: peaks of FO and ZO by model size")
    parser.add_argument(
        "--ranks", type=int, metavar="N", help="instead: what N processes gain over one, --threads each"
    )
    parser.add_argument("--sizes", default="20M,200M,500M,1B", metavar="A,B,...", help="of --memory")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="save the records")


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
    from zo.run import pick_device
    from zo.sizes import model_shape

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
    if options.memory:
        sizes = options.sizes.split(",")
        for size in sizes:
            model_shape(size, options.architecture)
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
    from zo.doctor import examine

    return examine(options.dataset, options.study)
