"""Where settings come from: defaults, then a TOML file, then the environment, then the command line."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from rm_server.config import ConfigError

ENVIRONMENT_PREFIX = "RM_SERVER_"
SHARED_VARIABLES = {"RM_CATALOG": "catalog_url", "RM_ARTIFACTS": "artifacts"}
"""Read by every command that works on a home; for the server, RM_SERVER_CATALOG_URL and RM_SERVER_ARTIFACTS win."""
# What Kubernetes and Docker put into the environment of every container beside a service named `rm-server`.
_SERVICE_LINK = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT(_\d+_\w+)?$")

Settings = TypeVar("Settings")


@dataclass(frozen=True, slots=True)
class Given:
    """A value somebody gave, and where, for messages. ``is_text``: it still has to be read as its type."""

    value: Any
    source: str
    is_text: bool = False


def load_settings(
    cls: type[Settings],
    *,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Settings:
    """Builds ``cls`` (a dataclass of values and of further dataclasses, its sections).

    ``environment``: ``RM_SERVER_ENGINE_WORKERS`` is ``engine.workers``. ``overrides``: by dotted name; texts are read
    as the setting's type. Raises ConfigError for unknown names, wrong types and values that make no sense.
    """
    known = _known(cls)
    given: dict[str, Given] = {}
    if file is not None:
        given |= _from_file(file, known)
    given |= _from_environment(environment or {}, known)
    for name, value in (overrides or {}).items():
        _check_known(name, "the command line", known)
        given[name] = Given(value, f"--{name}", is_text=isinstance(value, str))
    values = {name: _converted(name, known[name], setting) for name, setting in given.items()}
    return typing.cast(Settings, _build(cls, "", values))


def as_toml(settings: Any, prefix: str = "") -> str:
    """All settings as a file that would give them; what is not set is a comment. Secrets are left out."""
    lines, sections = [], ""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            sections += f"\n[{prefix}{field.name}]\n{as_toml(value, prefix + field.name + '.')}"
        elif not field.repr:
            continue
        elif value is None:
            lines.append(f"# {field.name} =")
        else:
            lines.append(f"{field.name} = {_toml_value(value)}")
    return "".join(line + "\n" for line in lines) + sections


def _toml_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml_value(part)}" for key, part in value.items()) + "}"
    if isinstance(value, bool | int | float):
        return str(value).lower()
    return json.dumps(str(value), ensure_ascii=False)


def _known(cls: Any, prefix: str = "") -> dict[str, Any]:
    """The dotted name and type of each setting."""
    hints = typing.get_type_hints(cls)
    known: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        name, hint = prefix + field.name, hints[field.name]
        known |= _known(hint, name + ".") if dataclasses.is_dataclass(hint) else {name: hint}
    return known


def _from_file(path: Path, known: Mapping[str, Any]) -> dict[str, Given]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"The settings file {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"The settings file {path} is no TOML: {error}.") from error
    return {name: Given(value, str(path)) for name, value in _flat(content, "", str(path), known).items()}


def _flat(table: Mapping[str, Any], prefix: str, source: str, known: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        name = prefix + key
        is_section = any(other.startswith(name + ".") for other in known)
        if is_section and isinstance(value, Mapping):
            flat |= _flat(value, name + ".", source, known)
        elif is_section:
            raise ConfigError(
                f"{name} (in {source}) is {value!r}; it is a section: write [{name}] and its settings below."
            )
        else:
            _check_known(name, source, known)
            flat[name] = value
    return flat


def _from_environment(environment: Mapping[str, str], known: Mapping[str, Any]) -> dict[str, Given]:
    names = {ENVIRONMENT_PREFIX + name.upper().replace(".", "_"): name for name in known}
    given = {
        setting: Given(environment[variable], variable, is_text=True)
        for variable, setting in SHARED_VARIABLES.items()
        if setting in known and variable in environment
    }
    for variable, text in environment.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or _SERVICE_LINK.search(variable):
            continue
        if variable not in names:
            raise ConfigError(f"{variable} in the environment is no setting{_nearest(variable, names)}")
        given[names[variable]] = Given(text, variable, is_text=True)
    return given


def _check_known(name: str, source: str, known: Mapping[str, Any]) -> None:
    if name not in known:
        raise ConfigError(f"{name} (in {source}) is no setting{_nearest(name, known)}")


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    by_last_part = {other.rpartition(".")[2]: other for other in known}
    last_part = name.rpartition(".")[2]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    close = close or [by_last_part[part] for part in difflib.get_close_matches(last_part, by_last_part, n=1)]
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(sorted(known))}."


def _converted(name: str, hint: Any, given: Given) -> Any:
    try:
        return _as(hint, _from_text(hint, given.value) if given.is_text else given.value)
    except ValueError:
        raise ConfigError(
            f"{name} (from {given.source}) is {given.value!r}; expected was {_description(hint)}."
        ) from None


def _from_text(hint: Any, text: str) -> Any:
    """Values are written as in TOML, texts without quotes."""
    hint = _without_none(hint)
    if hint in (str, Path) or typing.get_origin(hint) is Literal:
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        raise ValueError(text) from None


def _as(hint: Any, value: Any) -> Any:
    """The value as the setting's type; ValueError if it is of another type. Numbers are counts, sizes and seconds."""
    if _without_none(hint) is not hint:
        return None if value in ("", None) else _as(_without_none(hint), value)
    if typing.get_origin(hint) is Literal and value in typing.get_args(hint):
        return value
    if typing.get_origin(hint) is Mapping and isinstance(value, Mapping):
        return {str(key): _as(typing.get_args(hint)[1], part) for key, part in value.items()}
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    if hint in (str, bool) and isinstance(value, hint):
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf")
    if hint is int and is_number and isinstance(value, int):
        return value
    if hint is float and is_number:
        return float(value)
    raise ValueError(value)


def _description(hint: Any) -> str:
    hint = _without_none(hint)
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(hint)))
    if typing.get_origin(hint) is Mapping:
        return f"a table of which each value is {_description(typing.get_args(hint)[1])}"
    words = {
        bool: "true or false",
        int: "a whole number, 0 or more",
        float: "a number, 0 or more",
        str: "a text",
        Path: "a path",
    }
    return words[hint]


def _without_none(hint: Any) -> Any:
    """``T`` for ``T | None``; other hints as they are."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not types.NoneType)
    return hint


def _build(cls: Any, prefix: str, values: Mapping[str, Any]) -> Any:
    hints = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        name, hint = prefix + field.name, hints[field.name]
        if dataclasses.is_dataclass(hint):
            arguments[field.name] = _build(hint, name + ".", values)
        elif name in values:
            arguments[field.name] = values[name]
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(
                f"{name} is not set: give --{name}, {ENVIRONMENT_PREFIX}{name.upper().replace('.', '_')} "
                f"or `{name}` in the settings file."
            )
    return cls(**arguments)
