"""Reads a configuration file: YAML or JSON, a section `common`, one per script, and `models`.

Every name in it is checked, in the sections of the other scripts too, so that a typing error is
found by the first script that reads the file.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from rlm.errors import InputError
from rlm.settings import Settings, nearest


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
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text.strip('"') if isinstance(value, str) else text


def _parse(path: Path) -> dict:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InputError(f"--config {path}: {reason}; give a YAML or JSON file") from None
    if path.suffix == ".json":
        try:
            content = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{error.lineno}: not JSON: {error.msg}") from None
    else:
        content = _parse_yaml(path, text)
    if not isinstance(content, dict | None):
        raise InputError(f"{path}: not a mapping; use sections such as `common:` and `sft:`")
    return content or {}


def _parse_yaml(path: Path, text: str):
    import yaml

    class Loader(yaml.SafeLoader):
        """Refuses a key that stands twice, where YAML would silently take the last."""

        def construct_mapping(self, node, deep=False):
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
