"""SettingError: input that cannot work, said in one line."""

from __future__ import annotations

import difflib


class SettingError(ValueError):
    """A setting that is unknown, out of range, or contradicts another: one line with the remedy."""


def unknown_name(kind: str, name: str, known: list[str]) -> str:
    """One line for a name that is not known, with the nearest one that is."""
    near = difflib.get_close_matches(name, known, n=1)
    few = ", ".join(known) if len(known) <= 16 else f"{', '.join(known[:6])} and {len(known) - 6} more"
    hint = f"did you mean {near[0]!r}?" if near else f"known are: {few}"
    return f"{kind} {name!r} is not known; {hint}"
