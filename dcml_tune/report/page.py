"""What a page is made of: sections of sentences, tables, commands and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, ClassVar

from jinja2 import Environment, StrictUndefined

from dcml_tune.utils.redaction import redact
from dcml_tune.utils.stored import printable

NOTHING = "\N{EN DASH}"
"""Stands where there is no number."""

_TEMPLATE = "page.html.jinja"


@dataclass(frozen=True)
class Text:
    """A sentence or two."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Commands:
    """Commands to paste, each after what it does."""

    kind: ClassVar[str] = "commands"
    commands: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells below the names of the columns; numbers are written as they are to be read."""

    kind: ClassVar[str] = "table"
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, kw_only=True)
class Figure:
    """An image with what to look for in it."""

    kind: ClassVar[str] = "figure"
    name: str
    """Of its file, without the ending."""
    title: str
    caption: str
    source: str
    """Data URI of the image."""


Part = Text | Commands | Table | Figure


@dataclass(kw_only=True)
class Section:
    """A part of the page under a heading."""

    title: str
    parts: list[Part] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        """Its address within the page."""
        return self.title.lower().replace(" ", "-")

    def say(self, text: str) -> None:
        """Add a sentence."""
        self.parts.append(Text(text))


def render(**content: Any) -> str:
    """The page as HTML; what is put into it is escaped, and holds no password."""
    template = files(__package__).joinpath(_TEMPLATE).read_text()
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_shown
    )
    return environment.from_string(template).render(**content)


def _shown(value: Any) -> Any:
    """What is put into the page: text without passwords and control characters."""
    if not isinstance(value, str) or value.startswith("data:"):
        return value
    return "\n".join(map(printable, redact(value).split("\n")))


def percent(value: float | None, digits: int = 1) -> str:
    """A share of 1 as percent, or a dash."""
    return NOTHING if value is None else f"{100 * value:.{digits}f} %"


def points(value: float | None) -> str:
    """A difference of shares in percentage points with its sign, or a dash."""
    return NOTHING if value is None else f"{100 * value:+.1f}"
