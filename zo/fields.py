"""Fields of the settings: numbers in any spelling, axes and common settings, and complaints in one line."""

import re
from contextlib import suppress
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field, ValidationError

from zo.errors import UserError, suggest


def _reject_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("should be a number, not true or false")
    return value


def _read_whole(value: Any) -> Any:
    """Take any spelling of a whole number: 1e3 is text to YAML 1.1, and no int to Python."""
    if isinstance(value, str) and "e" in value.lower():
        with suppress(ValueError):
            number = float(value)
            return int(number) if number.is_integer() else value
    return _reject_bool(value)


Integer = Annotated[int, BeforeValidator(_read_whole)]
Number = Annotated[float, BeforeValidator(_reject_bool), Field(allow_inf_nan=False)]


def axis(default: Any, description: str, suffix: str | None = None, **limits: Any) -> Any:
    """Declare a setting that may differ between the runs of a study; ``suffix`` marks it in names."""
    extra = {"axis": True, "suffix": suffix}
    return Field(default, description=description, json_schema_extra=extra, **limits)


def common(default: Any, description: str, **limits: Any) -> Any:
    """Declare a setting that is one value for all runs of a study."""
    return Field(default, description=description, json_schema_extra={"axis": False}, **limits)


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """One line for pydantic's first complaint: the key, the value, what is allowed."""
    first = error.errors()[0]
    if first["type"] == "value_error" and isinstance(first["ctx"]["error"], UserError):
        return str(first["ctx"]["error"])
    key = ".".join(str(part) for part in first["loc"][:1])
    if first["type"] == "extra_forbidden":
        return f"unknown setting {key!r}: {suggest(key, model.model_fields)}"
    if first["type"] == "missing":
        return f"{key}: missing"
    if first["type"] == "literal_error":
        allowed = re.findall(r"'([^']+)'", first["ctx"]["expected"])
        return f"unknown {key} {first['input']!r}: {suggest(first['input'], allowed)}"
    kind = first["type"].partition("_")[0]  # int_parsing, float_type, bool_parsing, int_from_float ...
    told = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    reason = f"must be {KINDS[kind]}" if kind in KINDS else told
    return f"{key}: {first['input']!r} is not allowed: it {reason}"


KINDS = {"int": "an integer", "float": "a number", "bool": "a boolean, true or false", "string": "a string"}
"""What pydantic's complaints about a value's type begin with, in words."""
