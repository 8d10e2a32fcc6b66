"""Writes docs/settings.md from the code that checks the settings, so that the two cannot disagree.

python docs/make_settings.py
"""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import zo.study
from zo.lengths import LENGTHS
from zo.methods import METHODS
from zo.sizes import ARCHITECTURES, DEFAULT_VOCABULARY, SCOPES, SIZES, model_shape
from zo.spec import AXES, RunSpec, uses

PAGE = Path(__file__).with_name("settings.md")

HEAD = """\
# Settings

Every setting of a run and of a study, its default and who reads it. Made by `python docs/make_settings.py`
from `RunSpec` (zo/spec.py), `Workflow` (zo/study.py) and the model presets (zo/sizes.py); do not edit by
hand: a test compares this file with the code.

The name in the first column is the key of `spec.json` and, with `--` before it, the flag of `zo train` (`-`
and `_` are equal in flags). Where two names stand, the second is the key of a study file and the flag of
`zo sweep`, which take lists; elsewhere the one name serves all. Any spelling of a number will do (`1e-4`,
`0.0001`).

A study file must give `study`, `modes`, `learning_rates` and exactly one length. `zo train` must be given
`--mode`; without a length it trains for 1 epoch.
"""

AXIS_NOTE = """\
An axis takes a value, a list, or a mapping from mode to either ([sweeps.md](sweeps.md#axes)). The suffix
stands in a run's name where the value differs from the default. "Read by" lists the modes that use the axis;
in the runs of the other modes it is left at its default and multiplies nothing.
"""

LENGTH_NOTE = f"""\
Exactly one of {", ".join(f"`{key}`" for key in LENGTHS)} must be given. A further grid (`also`)
may have other values than the study's. None of these settings is in a run's name: another value trains the
same names again.
"""

WORKFLOW_NOTE = """\
Keys of a study file only. They are not part of a run, and changing one repeats no run (the summary and the
plots are made again).
"""

PRESET_NOTE = """\
Shapes of `model_size` x `architecture`. The vocabulary is the one used where none is given; the head is
tied to the embedding.
"""


PRESET_HEAD = ["model_size", "architecture", "width", "blocks", "heads", "MLP", "positions", "vocabulary"]


def render() -> str:
    """Return the page's text."""
    named = [key for key in AXES if key in zo.study.PLURAL]
    further = [key for key in AXES if key not in zo.study.PLURAL]
    common = [key for key in RunSpec.model_fields if key not in AXES]
    parts = [
        HEAD,
        "## The cell: in every run's name\n",
        _table(["setting", "in a name", "default", "allowed", "read by", "meaning"], map(_axis_row, named)),
        "## Further axes: a suffix in the name where off the default\n",
        AXIS_NOTE,
        _table(["setting", "in a name", "default", "allowed", "read by", "meaning"], map(_axis_row, further)),
        "## One value for all runs of a grid\n",
        LENGTH_NOTE,
        _table(["setting", "default", "allowed", "meaning"], map(_common_row, common)),
        "## How a study runs\n",
        WORKFLOW_NOTE,
        _table(["key", "default", "allowed", "meaning"], map(_workflow_row, zo.study.Workflow.model_fields)),
        "## Model presets\n",
        PRESET_NOTE,
        _table(
            PRESET_HEAD,
            [_preset_row(size, architecture) for size in SIZES for architecture in ARCHITECTURES],
        ),
    ]
    return "\n".join(parts)


def _table(head: list[str], rows) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _axis_row(key: str) -> list[str]:
    info = RunSpec.model_fields[key]
    plural = zo.study.PLURAL.get(key)
    name = f"`{key}`" + (f", `{plural}`" if plural else "")
    spelled = {"mode": "ZO_", "scope": "_full_", "batch_size": "_bs4", "query_budget_q": "_q8"}
    spelled |= {"learning_rate": "_lr1e-02"}
    suffix = info.json_schema_extra["suffix"]
    example = f"`{spelled[key]}`" if key in spelled else f"`_{suffix}<value>`"
    readers = [mode for mode in METHODS if uses(mode, key)]
    by = "all" if len(readers) == len(METHODS) else ", ".join(readers)
    return [name, example, _default(info), _allowed(key, info), by, _cell(info.description)]


def _common_row(key: str) -> list[str]:
    info = RunSpec.model_fields[key]
    return [f"`{key}`", _default(info), _allowed(key, info), _cell(info.description)]


def _workflow_row(key: str) -> list[str]:
    info = zo.study.Workflow.model_fields[key]
    return [f"`{key}`", _default(info), _allowed(key, info), _cell(info.description)]


def _preset_row(size: str, architecture: str) -> list[str]:
    shape = model_shape(size, architecture)
    numbers = (shape.width, shape.layers, shape.heads, shape.inner, shape.positions, DEFAULT_VOCABULARY[size])
    return [size, architecture, *map(str, numbers)]


def _default(info) -> str:
    if info.is_required():
        return "must be given"
    return "none" if info.default in (None, ()) else f"`{_spell(info.default)}`"


def _spell(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _allowed(key: str, info) -> str:
    """Say which values pydantic or the spec's own checks let through: words, or a kind and its limits."""
    if key == "gpus":
        return "`auto`, `none`, list of ids"
    words = {"mode": METHODS, "scope": SCOPES, "model_size": SIZES}.get(key, ())
    kind = info.annotation
    if type(None) in get_args(kind):
        kind = next(part for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is Literal:
        words = get_args(kind)
    if words:
        return ", ".join(f"`{word}`" for word in words)
    kind = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    signs = {"ge": "from {}", "gt": "above {}", "le": "to {}", "lt": "below {}"}
    found = [(text, getattr(limit, sign, None)) for limit in info.metadata for sign, text in signs.items()]
    names = {int: "whole number", float: "number", bool: "`true`, `false`", str: "text"}
    names |= {tuple[str, ...]: "text or list of them", tuple[zo.study.Step, ...]: "whole numbers from 1"}
    return " ".join(
        [names[kind], *(text.format(_limit(value)) for text, value in found if value is not None)]
    )


def _limit(value: float) -> str:
    return f"{value:g}" if value < 2**31 else f"2^{value.bit_length() - 1}"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "\\<")


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
