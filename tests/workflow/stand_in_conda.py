"""What Snakemake asks of conda: a ``conda`` for PATH that tests the wiring, not a solve.

An environment is a python that notes what it is asked to run, then is the one of the tests. It is only made
of a file whose every pip pin is installed here in that version.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import yaml

BASE = Path(__file__).parent


def main(words: list[str]) -> None:
    """Answer one call of Snakemake 9."""
    match words:
        case ["--version"]:
            print("conda 25.1.0")
        case ["info", "--json"]:
            print(json.dumps({"conda_prefix": str(BASE), "platform": "linux-64"}))
        case ["config", "--get", "channel_priority", "--json"]:
            print(json.dumps({"get": {"channel_priority": "strict"}}))
        case ["env", "create", *flags]:
            file, prefix = (flags[i + 1] for i, flag in enumerate(flags) if flag in ("--file", "--prefix"))
            create(Path(file.strip("'\"")), Path(prefix.strip("'\"")))
        case ["clean", *_]:
            pass
        case _:
            sys.exit(f"the stand-in for conda does not know: {' '.join(words)}")


def create(file: Path, prefix: Path) -> None:
    """Make the environment. AssertionError for a pin that is not what is installed."""
    *_, pip = yaml.safe_load(file.read_text())["dependencies"]
    for name, pin in (line.split("==") for line in pip["pip"]):
        assert version(name).split("+")[0] == pin, f"{name}=={pin}, but {version(name)} is installed"
    python = prefix / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\necho "$@" >> {prefix}/used\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)


if __name__ == "__main__":
    main(sys.argv[1:])
