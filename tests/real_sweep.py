"""A folder with a corpus, a study of short runs, and the real snakemake that runs there."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import yaml
from processes import killed_at_end

ROOT = Path(__file__).resolve().parents[1]
STUDY = {
    "study": "tiny",
    "modes": ["FO", "ZO", "Frozen"],
    "scopes": "full",
    "batch_sizes": 2,
    "query_budgets": 2,
    "learning_rates": {"FO": "1e-1", "ZO": ["1e-3", "3e-3"], "Frozen": 1e-3},
    "max_steps": 4,
    "log_interval": 2,
    "validation_interval": 2,
    "validation_blocks": 2,
    "block_size": 16,
    "validation_block_size": 16,
    "dataset": "text.txt",
    "vocab_size": 300,
    "model_size": "100k",
}


class Sweep:
    """A folder with a corpus and a study, and the snakemake that runs there."""

    def __init__(self, folder: Path, study: dict = STUDY, profile: str = "default", root: Path = ROOT):
        """``root``: of the checkout whose workflow runs."""
        self.folder, self.profile, self.root = folder, profile, root
        self.results = folder / "results" / "tiny"
        verses = [f"It was the best of verse {i}, it was the worst of {i * i}." for i in range(400)]
        (folder / "text.txt").write_text("\n\n".join(verses))
        self.write(study)

    def write(self, study: dict) -> None:
        (self.folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """Call snakemake with target and flags; its output, both streams together."""
        with killed_at_end(self.start(*arguments, **environment)) as process:
            output, _ = process.communicate(timeout=280)
        return subprocess.CompletedProcess(process.args, process.returncode, output)

    def start(
        self,
        *arguments: str,
        output=subprocess.PIPE,
        address_space: int | None = None,
        **environment: str,
    ) -> subprocess.Popen:
        """Start snakemake; its process. ``address_space``: bytes that each process of it may have."""
        command = [sys.executable, "-m", "snakemake", "--snakefile", str(self.root / "Snakefile"), *arguments]
        command += ["--workflow-profile", str(self.root / "profiles" / self.profile)]
        command += ["--cores", "2"] if self.profile == "default" and "--cores" not in arguments else []
        env = {key: value for key, value in os.environ.items() if not key.startswith("SNAKEMAKE")}
        limit = (address_space or resource.RLIM_INFINITY,) * 2
        return subprocess.Popen(
            [*command, "--configfile", "study.yaml"],
            cwd=self.folder,
            env=env | environment,
            text=True,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, limit) if address_space else None,
        )

    def planned(self, *arguments: str) -> list[str]:
        """Names of the jobs that a dry run announces: runs by their names, other rules by theirs."""
        done = self.run("-n", *arguments)
        assert done.returncode == 0, done.stdout
        return sorted(re.findall(r"^(?:    wildcards: run=|(?:local)?rule )([^\s:]+)", done.stdout, re.M))

    def outcome(self, run: str) -> dict:
        return json.loads((self.results / "runs" / run / "outcome.json").read_text())


def runs_of(jobs: list[str]) -> list[str]:
    return [job for job in jobs if "_" in job]
