"""The elements of a page (sections, sentences, tables, commands, figures) and its rendering as HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, ClassVar

from jinja2 import Environment, StrictUndefined

from dcml_tune.utils.redaction import redact
from dcml_tune.utils.stored import printable_lines

NOTHING = "\N{EN DASH}"
"""Placeholder for a missing number."""

_TEMPLATE = "page.html.jinja"


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Commands:
    """Commands to paste into a shell, by what they do."""

    kind: ClassVar[str] = "commands"
    commands: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table; its cells are formatted texts."""

    kind: ClassVar[str] = "table"
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """An image, with a caption that says what to look for."""

    kind: ClassVar[str] = "figure"
    name: str
    """Name of its file, without `.png`."""
    title: str
    caption: str
    source: str
    """Data URI of the image."""


Part = Text | Commands | Table | Figure


@dataclass(kw_only=True)
class Section:
    """A part of the page with a heading."""

    title: str
    parts: list[Part] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        """Fragment identifier of the section in the address of the page."""
        return self.title.lower().replace(" ", "-")

    def say(self, text: str) -> None:
        """Add a paragraph."""
        self.parts.append(Text(text))


def render(**content: Any) -> str:
    """Render the page as HTML; its content is escaped, and passwords are removed."""
    template = files(__package__).joinpath(_TEMPLATE).read_text()
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    return environment.from_string(template).render(**content)


def _shown(value: Any) -> Any:
    """A value as it is put into the page: text without passwords and control characters."""
    if not isinstance(value, str) or value.startswith("data:"):
        return value
    return printable_lines(redact(value))


def percent(value: float | None, digits: int = 1) -> str:
    """Format a fraction as percent; None as a dash."""
    return NOTHING if value is None else f"{100 * value:.{digits}f} %"


def points(value: float | None) -> str:
    """Format a difference of fractions in percentage points with its sign; None as a dash."""
    return NOTHING if value is None else f"{100 * value:+.1f}"
