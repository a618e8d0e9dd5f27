"""How settings are read: defaults < file < environment < flags. It knows none of our classes.

A settings class is a list of fields made with `option`; a field is a flag (`--group-size`), an
environment variable (`RLM_GROUP_SIZE`) and a key of the file (`group_size`) at once. Every wrong
value becomes an `InputError` of one line that names the place it came from. Nothing heavy is
imported here: `--help` and bad input are answered before torch is.
"""

import difflib
import os
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import Field, PrivateAttr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from rlm.errors import InputError

ENV_PREFIX = "RLM_"


def option(default, text, *, section="", flags=(), env=(), why="", shown=None, flag=True, **limits):
    """A field of a settings class.

    default: a value, or a function of the fields before it (a dict) that returns one.
    text: the help text with the unit; the range and the default are added by `describe`.
    section: opens a section of the help that lasts until the next one in the same class.
    flags, env: further names of the flag and of the environment variable, spelled out.
    why: the reason for the limits, for the error message. shown: the default in words.
    flag: False for a field of the file only, "positional" for an argument without a flag.
    limits: ge, gt, le, lt, as pydantic has them.
    """
    extra = {
        "section": section,
        "flags": list(flags),
        "env": list(env),
        "why": why,
        "shown": shown,
        "flag": flag,
        "limits": limits,
    }
    kind = "default_factory" if callable(default) else "default"
    return Field(description=text, json_schema_extra=extra, **{kind: default}, **limits)


class Settings(BaseSettings):
    """What every settings class has: frozen fields, unknown names refused, plain JSON by `dump`.

    Made in Python (`GRPOSettings(group_size=4)`) it reads neither environment nor file.
    """

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        enable_decoding=False,
        extra="forbid",
        frozen=True,
        validate_default=True,
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
    )
    # field -> where its value came from, ready to open an error message: "--group-size 1"
    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch_for_a_number(cls, value, info):
        # pydantic would take true for 1.
        if isinstance(value, bool) and plain_type(cls.model_fields[info.field_name]) in (
            int,
            float,
        ):
            return str(value).lower()
        return value

    @classmethod
    def settings_customise_sources(
        cls, settings_cls, init_settings, env_settings, dotenv_settings, file_secret_settings
    ):
        return (init_settings,)

    def dump(self) -> dict:
        """Every setting as plain JSON values, for `runs/<name>/settings.json`."""
        return self.model_dump(mode="json")

    @classmethod
    def defaults(cls) -> dict:
        """Every setting as `dump` gives it where nobody gave any."""
        return cls().dump()

    def given(self, name: str) -> str:
        """How the field was given, to open an error message: `--group-size 1`."""
        return self._origins.get(name) or f"{flag_of(name)} {getattr(self, name)}"

    def check(self) -> None:
        """What needs a look at the disk or at several fields; raises InputError."""


def flag_of(name: str) -> str:
    """`group_size` -> `--group-size`; `json_output` -> `--json`, since pydantic keeps `json`.

    So `check_only` -> `--check`, which is a method of `Settings`.
    """
    return "--" + name.removesuffix("_output").removesuffix("_only").replace("_", "-")


def extra_of(field: FieldInfo) -> dict:
    extra = field.json_schema_extra
    return dict(extra) if isinstance(extra, dict) else {}


def plain_type(field: FieldInfo) -> Any:
    """The type without `| None`."""
    annotation = field.annotation
    kinds = [kind for kind in get_args(annotation) if kind is not type(None)]
    is_optional = type(None) in get_args(annotation) and get_origin(annotation) is not Literal
    return (kinds[0] if len(kinds) == 1 else Union[tuple(kinds)]) if is_optional else annotation  # noqa: UP007


def allowed(field: FieldInfo) -> str:
    """The values a field takes, in words: `2 or more`, `think | xml | solution`; "" if any."""
    kind, limits = plain_type(field), extra_of(field).get("limits", {})
    if get_origin(kind) is Literal:
        return " | ".join(map(str, get_args(kind)))
    low, high = limits.get("ge", limits.get("gt")), limits.get("le", limits.get("lt"))
    number = {int: "a whole number", float: "a number"}.get(kind, "")
    if "ge" in limits and "le" in limits:
        return f"{low} to {high}"
    parts = []
    if low is not None:
        parts.append(f"{low} or more" if "ge" in limits else f"above {low}")
    if high is not None:
        parts.append(f"at most {high}" if "le" in limits else f"below {high}")
    return ", ".join(parts) or number


def describe(field: FieldInfo) -> str:
    """The help text of a field: its own, then the range and the default in brackets."""
    shown = extra_of(field)["shown"]
    if shown is None:
        default = field.default
        shown = ("none" if default in (None, "") else str(default).lower()
                 if isinstance(default, bool) else str(default))  # fmt: skip
    limits = "" if get_origin(plain_type(field)) is Literal else allowed(field)
    return f"{field.description} ({limits + '; ' if limits else ''}default {shown})"


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean --group-size?`, or "" if nothing is near."""
    match = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {match[0]}?" if match else ""


# --- environment -----------------------------------------------------------------------------


def read_environment(cls: type[Settings], known: Iterable[str]) -> tuple[dict, dict]:
    """(values, origins) of `RLM_...` and of the further names a field has.

    known: fields of every script; a variable close to one of them but unknown is refused, any
    other foreign `RLM_` variable is left alone.
    """
    names = {ENV_PREFIX + name.upper() for name in known}
    for variable in os.environ:
        if variable.upper().startswith(ENV_PREFIX) and variable.upper() not in names:
            match = difflib.get_close_matches(variable.upper(), names, n=1, cutoff=0.85)
            if match:
                raise InputError(f"{variable}: unknown variable; did you mean {match[0]}?")
    values, origins = {}, {}
    for name, field in cls.model_fields.items():
        for variable in extra_of(field).get("env", ()):
            if os.environ.get(variable):
                values[name] = os.environ[variable]
                origins[name] = f"{variable}={values[name]}"
    for name, value in EnvSettingsSource(cls)().items():
        if extra_of(cls.model_fields[name])["flag"] is False:
            raise InputError(f"{ENV_PREFIX}{name.upper()}: stands in the file of --config only")
        values[name] = value
        origins[name] = f"{ENV_PREFIX}{name.upper()}={value}"
    return values, origins


# --- the whole -------------------------------------------------------------------------------


def build(cls: type[Settings], values: Mapping, origins: Mapping) -> Settings:
    """The settings of `cls`. Raises InputError for the first value that is not allowed."""
    try:
        settings = cls(**values)
    except ValidationError as error:
        raise InputError(_one_line(cls, error, origins)) from None
    settings._origins.update(origins)
    return settings


def _one_line(cls: type[Settings], error: ValidationError, origins: Mapping) -> str:
    errors = [e for e in error.errors() if e["type"] != "default_factory_not_called"]
    first = errors[0]
    if not first["loc"]:
        return " ".join(str(first.get("ctx", {}).get("error", first["msg"])).split())
    name = str(first["loc"][0])
    given = origins.get(name) or f"{flag_of(name)} {first['input']}"
    if first["type"] == "value_error":
        return f"{given}: {first['ctx']['error']}"
    if name not in cls.model_fields:
        return f"{name}: unknown setting{nearest(name, cls.model_fields)}"
    field = cls.model_fields[name]
    values = allowed(field) or first["msg"]
    why = extra_of(field)["why"]
    if first["type"] == "literal_error":
        return f"{given}: unknown; use {values}{nearest(str(first['input']), values.split(' | '))}"
    if first["type"].endswith(("_parsing", "_type", "_from_float")):
        kind = {int: "a whole number", float: "a number", bool: "true or false"}
        need = kind.get(plain_type(field))
        return f"{given}: not {need}; use {values}" if need else f"{given}: {values}"
    return f"{given}: {why or 'out of range'}; use {values}"
