"""Settings that arms must have alike to be compared: all that is no part of a method or of its tuning."""

from collections.abc import Iterable, Mapping

from zo.analysis.runs import Logs, read_settings
from zo.lengths import LENGTHS
from zo.methods import METHODS
from zo.spec import PLAN_KEYS, RunSpec, uses

WATCHING = ("log_interval", "validation_interval", "checkpoint_interval")
FREE = {"mode", "scope", "learning_rate", "seed", "bp_dataset", "ranks", *LENGTHS, *WATCHING, *PLAN_KEYS}
"""Settings of every method in which arms may differ: any number of ranks makes the same run, to rounding;
that lengths differ is the guard of budgets' to tell."""
ALIKE = tuple(
    key for key in RunSpec.model_fields if key not in FREE and all(uses(mode, key) for mode in METHODS)
)

Settings = Mapping[str, frozenset]
"""The values of an arm's runs, by setting; one that is not known is not there."""


def gather_settings(logs: Logs, runs: Iterable[str], keys: Iterable[str] = ALIKE) -> Settings:
    """Gather the values that runs have of some settings; None where a spec says that it is not set."""
    known = [dict.fromkeys(logs.specs[run]) | read_settings(logs, run) for run in runs]
    found = {key: frozenset(own[key] for own in known if key in own) for key in keys}
    return {key: values for key, values in found.items() if values}


def tell_apart(arms: Mapping[str, Settings]) -> dict[str, str]:
    """Say of each setting in which arms differ their values: 'precision (FO bf16, ZO q=1 fp32)'."""
    told = {}
    for key in dict.fromkeys(key for settings in arms.values() for key in settings):
        known = {arm: settings[key] for arm, settings in arms.items() if key in settings}
        if len(set(known.values())) > 1:
            told[key] = f"{key} ({', '.join(f'{arm} {_spell(values)}' for arm, values in known.items())})"
    return told


def _spell(values: frozenset) -> str:
    """Write an arm's values of a setting: '64', 'fp32 and bf16', 'none'."""
    return " and ".join(sorted(f"{v:g}" if isinstance(v, float) else str(v).lower() for v in values))
