"""What of a study is made already, by the settings that it has now: by others it will be made again."""

from pathlib import Path

from zo.files import read_json
from zo.spec import RunSpec, find_other_setting
from zo.study import Study
from zo.training.record import FINISHED, RunFiles


def unfinished(study: Study) -> list[RunSpec]:
    """The runs that a sweep would still make or repeat."""
    results = Path(study.results)
    return [spec for name, spec in study.runs.items() if not is_finished(spec, RunFiles(results, name))]


def is_finished(spec: RunSpec, files: RunFiles) -> bool:
    """Whether a run has ended, as ``spec`` wants it."""
    return read_json(files.outcome).get("status") in FINISHED and _is_of(spec, files)


def newest_step(spec: RunSpec, files: RunFiles) -> int:
    """The step of the checkpoint that a run would go on from; 0 where it would start over."""
    if not _is_of(spec, files):
        return 0
    return max((int(path.stem[5:]) for path in files.checkpoints.glob("step-*.safetensors")), default=0)


def _is_of(spec: RunSpec, files: RunFiles) -> bool:
    stored = read_json(files.folder / "spec.json")
    return not stored or find_other_setting(spec, stored) is None
