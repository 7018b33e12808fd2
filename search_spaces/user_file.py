"""Loads search spaces: those of the package, and users' files, whose errors are reported with their line."""

from __future__ import annotations

import ast
import importlib
import os
import stat
import sys
import traceback
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import WORDS_FOR_WEIGHTS
from dcml_tune.runs.paths import absolute
from dcml_tune.utils.signals import SearchStopped
from search_spaces.backbones import fitted_to_backbones, with_fitting_start
from search_spaces.checks import SpaceError
from search_spaces.domains import Choice
from search_spaces.space import SearchSpace

_MODULE = "dcml_tune_user_space"
_MOST_BYTES = 1_000_000


FOUR, WIDE = "four", "wide"
"""Names of the two spaces of each data set: its four settings (the default), and whole recipes."""


def load_space(
    dataset: str, path: str | Path | None = None, arch: str | None = None, sz_embedding: int | None = None
) -> SearchSpace:
    """The search space of a data set: one of its module, by the name `four` or `wide`, or that of a user's file.

    A file is Python code of the user and is executed. Its output goes to stderr.

    Args:
        dataset: its name.
        path: `four`, `wide` or a file; None: `four`.
        arch: the backbone, if it is given by a flag; the spaces of the package are fitted to it.
        sz_embedding: dimensions of the embedding, likewise.

    Raises:
        SettingError: if the file does not exist, raises an error, or defines no SPACE for this data set.
    """
    module = importlib.import_module(f"search_spaces.{dataset}")
    shipped: SearchSpace = module.SPACE
    if path in (None, FOUR):
        return with_fitting_start(shipped, arch, sz_embedding)
    if path == WIDE:
        return fitted_to_backbones(with_fitting_start(module.WIDE, arch, sz_embedding), arch)
    assert path is not None
    file = _File(path)
    space = file.space()
    for theirs in (space.name, space.published.get("dataset", dataset)):
        if theirs != dataset:
            raise file.error(
                f"the space is of data set {theirs}, and {dataset} is searched; make it of {dataset}", "SPACE"
            )
    weights = space.domains.get("weights", Choice([space.published.get("weights", "none")]))
    for named in getattr(weights, "values", ()):
        if named not in WORDS_FOR_WEIGHTS and not os.path.isabs(named):
            raise file.error(
                f"weights={named}: trials run in other directories; give the whole path of the file", "weights"
            )
    for name, domain in space.domains.items():
        value = space.published.get(name)
        # The published point of a shipped space may lie outside of a domain; trial 0 then takes the nearest value.
        if name in space.published and not domain.holds(value) and value != shipped.published.get(name):
            raise file.error(f"published {name}={value!r} is outside of its domain, {domain}; change one of them", name)
    return space


def recorded_name(space: str | None) -> str | None:
    """What the record of a search holds of `--space`: a name, or the absolute path of a file; None for the default."""
    if space in (None, "", FOUR):
        return None
    return WIDE if space == WIDE else str(absolute("--space", str(space)))


class _File:
    """A user's file that defines SPACE."""

    def __init__(self, path: str | Path) -> None:
        self.shown = str(path)
        self.path = os.path.expanduser(self.shown)
        self.source = self._read()

    def error(self, message: str, name: str | None = None, line: int | None = None) -> SettingError:
        """An error in the file, with the line on which `name` appears, or with `line`."""
        number = line if name is None else self._line_of(name, line)
        place = f", line {number}" if number is not None else ""
        return SettingError(f"--space {self.shown}{place}: {message}")

    def space(self) -> SearchSpace:
        """Execute the file and return its SPACE."""
        code = self._compiled()
        module = ModuleType(_MODULE)
        module.__file__ = self.path
        sys.modules[_MODULE] = module
        try:
            with redirect_stdout(sys.stderr):
                exec(code, module.__dict__)
        except SearchStopped:  # a signal arrived while the file ran
            raise
        except SpaceError as error:
            raise self.error(str(error), error.setting, self._line_in(error)) from None
        except SettingError as error:
            raise self.error(str(error), line=self._line_in(error)) from None
        except SystemExit as error:
            raise self.error("it ends the process; let it define SPACE and go on", line=self._line_in(error)) from None
        except BaseException as error:
            raise self.error(f"cannot be run ({_said(error)}); correct it", line=self._line_in(error)) from None
        found = getattr(module, "SPACE", None)
        if not isinstance(found, SearchSpace):
            what = "defines no SPACE" if found is None else f"SPACE is of type {type(found).__name__}"
            raise self.error(f"{what}; write SPACE = SearchSpace(...) (search_spaces/emoji.py shows how)", "SPACE")
        return found

    def _read(self) -> bytes:
        try:
            facts = os.stat(self.path)
            if not stat.S_ISREG(facts.st_mode):
                raise self.error("is not a regular file; give a Python file that defines SPACE = SearchSpace(...)")
            if facts.st_size > _MOST_BYTES:
                raise self.error(f"has {facts.st_size:,} bytes; a file that defines SPACE has at most {_MOST_BYTES:,}")
            return Path(self.path).read_bytes()
        except FileNotFoundError:
            reason = "no such file"
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
        except SettingError:
            raise
        except ValueError as error:  # the path holds a null byte
            reason = str(error)
        raise self.error(f"{reason}; give a Python file that defines SPACE = SearchSpace(...)")

    def _compiled(self) -> CodeType:
        try:
            return compile(self.source, self.path, "exec", dont_inherit=True)
        except SyntaxError as error:
            raise self.error(f"is not Python ({error.msg}); correct it", line=error.lineno) from None
        except (ValueError, MemoryError, RecursionError, OverflowError) as error:
            raise self.error(f"is not Python ({_said(error)}); correct it") from None

    def _line_in(self, error: BaseException) -> int | None:
        """The last line of the file in the traceback of an exception."""
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == self.path]
        return lines[-1] if lines else None

    def _line_of(self, name: str, first: int | None) -> int | None:
        """The first line, from `first` on, on which a setting or SPACE is named."""
        lines = sorted(int(node.lineno) for node in _nodes(self.source) if _names(node, name))
        return next((line for line in lines if line >= (first or 0)), first)


def _nodes(source: bytes) -> Iterator[Any]:
    return ast.walk(ast.parse(source))


def _names(node: Any, name: str) -> bool:
    """Whether a node is `name=...`, a string that equals the name, or an assignment to the name."""
    if isinstance(node, ast.keyword):
        return node.arg == name
    if isinstance(node, ast.Name):
        return node.id == name and isinstance(node.ctx, ast.Store)
    return isinstance(node, ast.Constant) and node.value == name


def _said(error: BaseException) -> str:
    """Type and message of an exception in one line, also if its message cannot be formatted."""
    return " ".join(traceback.format_exception_only(error)[-1].split())[:300]
