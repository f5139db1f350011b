"""What the pages of reports have in common: plots, a template beside this file, and what is said without the extra."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from typing import Any, NamedTuple

from rm_server.commands.common import CommandError


class Plot(NamedTuple):
    """A plot with what it shows."""

    title: str
    svg: str
    caption: str


@contextmanager
def drawing() -> Iterator[None]:
    """Raises CommandError where what draws is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise CommandError(f"--html needs {error.name}: install it with `pip install 'rm-service[train]'`.") from error


def rendered(template: str, values: Mapping[str, Any], filters: Mapping[str, Callable[..., str]] | None = None) -> str:
    """The template, a file's name, filled in. Raises CommandError as `drawing` does."""
    with drawing():
        from jinja2 import Environment, StrictUndefined
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= filters or {}
    text = files(__package__).joinpath(template).read_text(encoding="utf-8")
    return environment.from_string(text).render(values)
