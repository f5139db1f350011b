"""Settings from a TOML file and the command line, checked key by key; and back to TOML."""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ppo_client.ppo.errors import ConfigError

T = TypeVar("T")


def load_config(cls: type[T], path: Path | None, overrides: Sequence[str] = ()) -> T:
    """An instance of the dataclass `cls`: defaults, then the file, then overrides such as `ppo.batch_size=64`."""
    settings: dict[str, Any] = {}
    if path is not None:
        try:
            settings = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"no config file at {path}") from None
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not TOML: {error}") from error
    for setting in overrides:
        _put(settings, setting)
    return from_mapping(cls, settings)


def override(name: str, value: Any) -> str:
    """What sets `name` to just this value: a text may look like anything in TOML."""
    return f"{name}={_toml_value(value)}"


def from_mapping(cls: type[T], settings: Mapping[str, Any]) -> T:
    """An instance of the dataclass `cls`; unknown keys and values of the wrong type are refused."""
    value = _convert(cls, settings, "")
    assert isinstance(value, cls)
    return value


def to_mapping(config: Any) -> dict[str, Any]:
    """The settings as nested dicts, without those that are None."""
    settings: dict[str, Any] = {}
    for item in dataclasses.fields(config):
        value = getattr(config, item.name)
        if dataclasses.is_dataclass(value):
            settings[item.name] = to_mapping(value)
        elif isinstance(value, tuple):
            settings[item.name] = [to_mapping(entry) if dataclasses.is_dataclass(entry) else entry for entry in value]
        elif value is not None:
            settings[item.name] = value
    return settings


def to_toml(config: Any) -> str:
    """The settings as TOML that `load_config` reads back to an equal config."""
    settings = to_mapping(config)
    lines = [f"{key} = {_toml_value(value)}" for key, value in settings.items() if not isinstance(value, dict)]
    for section, values in settings.items():
        if isinstance(values, dict):
            lines += ["", f"[{section}]", *(f"{key} = {_toml_value(value)}" for key, value in values.items())]
    return "\n".join(lines).lstrip("\n") + "\n"


def changed_keys(old: Any, new: Any) -> list[str]:
    """Dotted names of the settings in which two configs of one class differ."""
    names = []
    for item in dataclasses.fields(old):
        before, after = getattr(old, item.name), getattr(new, item.name)
        if dataclasses.is_dataclass(before):
            names += [f"{item.name}.{name}" for name in changed_keys(before, after)]
        elif before != after:
            names.append(item.name)
    return names


def _toml_value(value: Any) -> str:
    if isinstance(value, float):
        return repr(value)  # `inf` and `1e-05` are TOML, too
    if isinstance(value, list):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {_toml_value(entry)}' for key, entry in value.items())} }}"
    return json.dumps(value, ensure_ascii=False)


def _put(settings: dict[str, Any], setting: str) -> None:
    """Sets `section.key=value`; the value is TOML, or else a plain string."""
    name, equals, text = setting.partition("=")
    if not equals or not name.strip():
        raise ConfigError(f"{setting!r} is not a setting: write it as section.key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = None if text.strip().lower() == "none" else text
    *sections, key = name.strip().split(".")
    place = settings
    for section in sections:
        place = place.setdefault(section, {})
        if not isinstance(place, dict):
            raise ConfigError(f"{setting!r}: {section} is a value, not a section")
    place[key] = value


def _convert(kind: Any, value: Any, name: str) -> Any:
    """`value` as the type `kind`, or a ConfigError that names the setting."""
    if dataclasses.is_dataclass(kind):
        return _convert_section(kind, value, name)
    origin = get_origin(kind)
    if origin in (types.UnionType, Union):
        inner = [choice for choice in get_args(kind) if choice is not type(None)]
        return None if value is None else _convert(inner[0], value, name)
    if origin is Literal:
        choices = get_args(kind)
        if value not in choices:
            raise ConfigError(f"{name} is {value!r}: choose one of {', '.join(map(repr, choices))}")
        return value
    if origin is tuple:
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{name} is {value!r}: a list is expected")
        return tuple(_convert(get_args(kind)[0], entry, name) for entry in value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not kind:
        raise ConfigError(f"{name} is {value!r} ({type(value).__name__}): {kind.__name__} is expected")
    return value


def _convert_section(cls: Any, value: Any, name: str) -> Any:
    if not isinstance(value, Mapping):
        raise ConfigError(f"[{name}] is a section of settings, and {value!r} is none")
    hints = get_type_hints(cls)
    known = [item.name for item in dataclasses.fields(cls)]
    for key in value:
        if key not in known:
            raise ConfigError(_unknown(cls, name, key, known))
    prefix = f"{name}." if name else ""
    if missing := [item.name for item in dataclasses.fields(cls) if _is_required(item) and item.name not in value]:
        raise ConfigError(f"{name} has no {', '.join(missing)}: {dict(value)}")
    return cls(**{key: _convert(hints[key], entry, prefix + key) for key, entry in value.items()})


def _is_required(item: dataclasses.Field[Any]) -> bool:
    return item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING


def _unknown(cls: Any, section: str, key: str, known: Sequence[str]) -> str:
    where = f"{section}.{key}" if section else key
    if nearest := difflib.get_close_matches(key, known, n=1, cutoff=0.6):
        return f"unknown setting {where}: did you mean {f'{section}.' if section else ''}{nearest[0]}?"
    sections = (
        {} if section else {name: sub for name, sub in get_type_hints(cls).items() if dataclasses.is_dataclass(sub)}
    )
    if found := [name for name, sub in sections.items() if key in {item.name for item in dataclasses.fields(sub)}]:
        return f"unknown setting {where}: did you mean {' or '.join(f'{name}.{key}' for name in found)}?"
    return f"unknown setting {where}; known here: {', '.join(known)}"
