"""Reads a configuration file: YAML or JSON, a section `common`, one per script, and `models`.

Every name in it is checked, in the sections of the other scripts too, so that a typing error is
found by the first script that reads the file.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from rlm.cli.layers import Settings, nearest
from rlm.errors import InputError


def read_file(path: str, sections: Mapping[str, type[Settings]], section: str) -> tuple:
    """(values, origins, names) of a script's section over `common`.

    sections: section name -> its settings class. names: the mapping under `models`, "" left out.
    Raises InputError with path and line for a file that cannot be read, and for unknown names.
    """
    content = _parse(Path(path))
    _known(path, "section", content, ["common", "models", *sections])
    for name, block in content.items():
        if block is not None and not isinstance(block, dict):
            raise InputError(f"{path}: {name}: a section holds `name: value` lines; indent them")
    for name, cls in sections.items():
        _known(path, f"setting in {name}:", content.get(name) or {}, _keys(cls))
    everywhere = {key for cls in sections.values() for key in _keys(cls)}
    common = content.get("common") or {}
    _known(path, "setting in common:", common, everywhere)

    values, origins = {}, {}
    own = set(_keys(sections[section]))
    for block in ("common", section):
        for key, value in (content.get(block) or {}).items():
            if key in own:
                values[key] = value
                origins[key] = f"{path}: {block}: {key}: {_shown(value)}"
    names = {str(name): str(place) for name, place in (content.get("models") or {}).items()}
    if "base" in names:
        raise InputError(f"{path}: models: base is the base model's own name; choose another")
    return values, origins, names


def _keys(cls: type[Settings]) -> list[str]:
    """The fields that a section may set: all but the file's own name and the model names."""
    return [name for name in cls.model_fields if name not in ("config", "named_models")]


def _known(path: str, what: str, given, known) -> None:
    for name in given:
        if name not in known:
            hint = nearest(str(name).replace("-", "_"), known)
            hint = hint or f"; use {', '.join(sorted(known))}"
            raise InputError(f"{path}: {name}: unknown {what.rstrip(':')}{hint}")


def _shown(value) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError):  # YAML's: a key that is no text, a list that holds itself
        return repr(value)


def _parse(path: Path) -> dict:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"--config {path}: {reason}; give a YAML or JSON file") from None
    except ValueError:  # a NUL
        raise InputError(f"--config {path}: no name of a file; give a YAML or JSON file") from None
    try:
        content = (_parse_json if path.suffix == ".json" else _parse_yaml)(path, text)
    except RecursionError:
        raise InputError(f"{path}: nested too deeply; use sections of `name: value`") from None
    if not isinstance(content, dict | None):
        raise InputError(f"{path}: not a mapping; use sections such as `common:` and `sft:`")
    return content or {}


def _parse_json(path: Path, text: str):
    def once(pairs: list[tuple[str, object]]) -> dict:
        """Refuse a key that stands twice, where Python would silently take the last."""
        found: dict = {}
        for key, value in pairs:
            if key in found:
                raise InputError(f"{path}: {key} stands twice; keep one")
            found[key] = value
        return found

    try:
        return json.loads(text, object_pairs_hook=once)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    except InputError:
        raise
    except ValueError as error:  # a number of thousands of digits
        raise InputError(f"{path}: not JSON: {error}") from None


def _parse_yaml(path: Path, text: str):
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key that stands twice, where YAML would silently take the last."""

        def construct_object(self, node, deep=False):
            try:
                return super().construct_object(node, deep)
            except (InputError, yaml.YAMLError, RecursionError):
                raise
            # A date without its day, a tag on what it does not fit: PyYAML lets anything out.
            except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
                problem = f"{node.tag.rpartition(':')[2]} cannot be read ({error})"
                raise yaml.constructor.ConstructorError(
                    problem=problem, problem_mark=node.start_mark
                ) from None

        def construct_mapping(self, node, deep=False):
            if not isinstance(node, yaml.MappingNode):
                return super().construct_mapping(node, deep)
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            for index, key in enumerate(keys):
                if key in keys[:index]:
                    line = node.value[index][0].start_mark.line + 1
                    raise InputError(f"{path}:{line}: {key} stands twice; keep one")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or "not readable").split())
        raise InputError(f"{path}{line}: not YAML: {problem}") from None
