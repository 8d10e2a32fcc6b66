"""Reading a study file: YAML whose mistakes are told by their line, and in which no key stands twice."""

from pathlib import Path
from typing import Any

import yaml

from zo.errors import UserError


class _Loader(yaml.SafeLoader):
    """YAML of plain values. The standard one takes the last of two equal keys and says nothing."""

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        first = {}
        for key, _ in node.value:
            before = first.setdefault((key.tag, str(key.value)), key)
            if before is not key and not key.tag.endswith(":merge"):
                line = before.start_mark.line + 1
                raise yaml.MarkedYAMLError(
                    problem=f"key {key.value!r} stands here and in line {line}: drop one of them",
                    problem_mark=key.start_mark,
                )
        return node


def read_yaml(path: Path) -> Any:
    """Return a YAML file's content. Raises UserError with the path, and the line where it is no YAML."""
    try:
        return _Loader(path.read_text(encoding="utf-8")).get_single_data()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        reason = f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
    raise UserError(f"{path}: cannot be read: {reason}")
