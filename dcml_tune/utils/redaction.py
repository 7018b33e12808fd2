"""Removes passwords and tokens from addresses, commands and errors before they are shown or written.

A password may hold slashes, quotes and spaces, so that these do not show where a login ends. Everything between `://` and
the last `@` of the line is therefore treated as the login.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

_LONG = r"[\w.-]*(?:token|passw(?:or)?d|passphrase|secret|credential|api[-_]?key|access[-_]?key)[\w-]*"
"""Names of secrets, wherever they appear."""

_SHORT = r"(?:[\w.-]*[-_.])?(?:auth|key|pwd|pass|sig|signature|sas)"
"""Names of secrets in the query of an address, or as flags."""

# Addresses of SQLite and of local files have no login; an @ in them belongs to the path.
_LOGIN = re.compile(r"(?i)(?<![\w+.-])((?!(?:sqlite(?:\+\w+)?|file):)[a-z][\w+.-]*://).*@")
_DONE = r"\*\*\*(?=[:&#\s]|$)"
"""A value that was replaced before: what follows it in a message stays."""

_QUERY = re.compile(rf"(?i)([?&;](?:{_LONG}|{_SHORT})=)(?:{_DONE}|[^&#\r\n]*)")
_NAMED = re.compile(rf"(?i)((?<![\w.-]){_LONG}=)(?:{_DONE}|'[^'\r\n]*'|\"[^\"\r\n]*\"|[^&\s#]+)")
_FLAG = re.compile(rf"(?i)--?(?:{_LONG}|{_SHORT})")


def redact(text: str) -> str:
    """Replace passwords and tokens in an address, or in a text that holds addresses, by `***`.

    Example:
        >>> redact("http://ann:se/cr@t@host:5000/?token=abc&page=1")
        'http://***@host:5000/?token=***&page=1'
    """
    return _NAMED.sub(r"\1***", _QUERY.sub(r"\1***", _LOGIN.sub(r"\1***@", text)))


def redact_command(argv: Sequence[str]) -> str:
    """A command as it is typed in a shell, with passwords and tokens replaced by `***`.

    Example:
        >>> redact_command(["search", "--api-token", "abc", "--nb-clusters=4"])
        "search --api-token '***' --nb-clusters=4"
    """
    before = ["", *argv]
    words = ["***" if _FLAG.fullmatch(last) else _word(word) for last, word in zip(before, argv, strict=False)]
    return shlex.join(words)


def _word(word: str) -> str:
    """A word of a command without its secret, which may hold any characters up to the end of the word."""
    name, equals, _ = word.partition("=")
    return f"{name}=***" if equals and (_FLAG.fullmatch(name) or re.fullmatch(_LONG, name, re.I)) else redact(word)
