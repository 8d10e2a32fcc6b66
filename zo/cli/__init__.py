"""The command line: which commands there are, and how a user's mistake ends.

A UserError is one line on stderr and exit status 2. What is heavy is imported by the command that needs it.
"""

import argparse
import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

from zo.causes import TRY_AGAIN, is_out_of_memory, lies_with_machine
from zo.cli import checking, planning, probing, reading, sweeping, training
from zo.errors import UserError, suggest, unknown

PROGRAM = "zo"
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST)
"""What a file system says to a path that cannot be used: the user's to mend, no bug."""


class Command(NamedTuple):
    """One command: what runs, what adds its flags, and its line of help."""

    run: Callable[[argparse.Namespace], int]
    add_flags: Callable[[argparse.ArgumentParser], None]
    help: str
    listed: bool = True
    """In `zo --help`: not what only the workflow calls."""


COMMANDS = {
    "train": Command(training.train, training.add_train_flags, "train one run, as a sweep would"),
    "sweep": Command(
        sweeping.sweep,
        sweeping.add_sweep_flags,
        "run a grid given by flags through the Snakemake workflow",
    ),
    "plan": Command(
        planning.plan, planning.add_plan_flags, "tell what a study will take: passes, hours, disk, memory"
    ),
    "status": Command(sweeping.status, sweeping.add_status_flags, "show how far every run of a sweep is"),
    "pack": Command(sweeping.pack, sweeping.add_pack_flags, "pack a study into one archive"),
    "prune": Command(sweeping.prune, sweeping.add_prune_flags, "delete what finished runs no longer need"),
    "cache": Command(training.cache, training.add_cache_flags, "build the token cache that runs read"),
    "analyze": Command(reading.analyze, reading.add_analyze_flags, "summarize a folder of CSV logs"),
    "plot": Command(reading.plot, reading.add_plot_flags, "draw the figures of a folder of CSV logs"),
    "stats": Command(reading.stats, reading.add_stats_flags, "print the statistics of a folder of CSV logs"),
    "claims": Command(
        reading.claims, reading.add_claims_flags, "judge the paper's claims by a folder of CSV logs"
    ),
    "report": Command(
        reading.report, reading.add_report_flags, "write the report of a folder of CSV logs: one HTML file"
    ),
    "bench": Command(
        checking.bench, checking.add_bench_flags, "time a ZO step against inference, an FO step and MeZO"
    ),
    "replay": Command(
        training.replay, training.add_replay_flags, "rebuild a ZO run's final weights from its scalar log"
    ),
    "probe": Command(
        probing.probe, probing.add_probe_flags, "measure a run's ZO estimates against the exact gradient"
    ),
    "doctor": Command(
        checking.doctor, checking.add_doctor_flags, "print versions, devices, memory, and what is missing"
    ),
    "crash": Command(
        sweeping.crash,
        sweeping.add_crash_flags,
        "(for the workflow) record a training job that failed",
        False,
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit status."""
    # OpenMP's threads wait for work by spinning, on the cores where ours make noise in between. Read when
    # torch is loaded; docs/benchmarks.md has what it costs.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    words = [_hyphens(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    name = " ".join([PROGRAM, *words[:1]])
    try:
        options = read_flags(words)
        return options.action(options) or 0
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `zo stats ... | head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
        return 0
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "zo":
            raise
        remedy = "pip install -c envs/pins.txt -e '.[dev]', or take the python of .venv"
        print(f"{name}: {sys.executable} has no package {error.name}: {remedy}", file=sys.stderr)
        return 2
    except Exception as error:
        if isinstance(error, OSError) and error.errno in REFUSED:
            print(f"{name}: {error.filename}: {error.strerror}", file=sys.stderr)
            return 2
        if not lies_with_machine(error):
            raise
        print(f"{name}: {_describe_shortage(error)}", file=sys.stderr)
        return TRY_AGAIN


def _describe_shortage(error: Exception) -> str:
    """In one line; ``train`` itself makes a step smaller first, or says where its run goes on."""
    if is_out_of_memory(error):  # while it was imported, say
        *_, line = [type(error).__name__, *str(error).strip().splitlines()]
        return f"out of memory: {line}: give it more, or run less at once"
    line, *_ = [*str(error.__cause__ or error).splitlines(), type(error).__name__]
    return f"{line}: make room if the disk is full, or try again later"


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are a user's mistakes like all others: one line, not a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: `{self.prog} --help` says more")


def read_flags(words: Sequence[str]) -> argparse.Namespace:
    """Read a command and its flags. Raises UserError for what it does not know, with the nearest it does."""
    listed = [name for name, command in COMMANDS.items() if command.listed]
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        raise unknown("command", words[0], listed)
    options, left = build_parser(*words[:1]).parse_known_args(words)
    if left:
        flags = re.findall(r"(?<![\w-])--[a-z][a-z-]*", options.usage())
        near = suggest(left[0].partition("=")[0], flags, f"`zo {words[0]} --help`")
        raise UserError(f"unexpected {left[0]!r}: {near}")
    return options


def build_parser(wanted: str | None = None) -> argparse.ArgumentParser:
    """All commands, with the flags of the one that is wanted, or of all: reading the settings takes time."""
    parser = Parser(
        prog=PROGRAM,
        description="Pretrain small language models with zeroth- and first-order methods, and compare them.",
        epilog="Flags may be spelled with - or _. `zo COMMAND --help` says more.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        shown = {"help": command.help} if command.listed else {}  # argparse lists what has a help
        description = command.help[0].upper() + command.help[1:] + "."
        subparser = commands.add_parser(name, description=description, allow_abbrev=False, **shown)
        subparser.set_defaults(action=command.run, usage=subparser.format_usage)
        if wanted in (None, name):
            command.add_flags(subparser)
    return parser


def _hyphens(word: str) -> str:
    """--batch_size and --batch-size are one flag; values stay as they are."""
    if not word.startswith("--"):
        return word
    flag, equals, value = word.partition("=")
    return flag.replace("_", "-") + equals + value
