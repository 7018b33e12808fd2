"""Text without passwords: what is shown or written of an address, a command or an error goes through here.

An address that holds a login cannot be told from one that does not by its slashes, quotes or spaces: passwords have all
of them. So everything between `://` and the last `@` of the line is the login.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

_LONG = r"[\w.-]*(?:token|passw(?:or)?d|passphrase|secret|credential|api[-_]?key|access[-_]?key)[\w-]*"
"""Names that mean a secret wherever they stand."""

_SHORT = r"(?:[\w.-]*[-_.])?(?:auth|key|pwd|pass|sig|signature|sas)"
"""Names that mean a secret in the query of an address, or as a flag."""

# The files of SQLite and of this machine have no login, and an @ in their paths is one.
_LOGIN = re.compile(r"(?i)(?<![\w+.-])((?!(?:sqlite(?:\+\w+)?|file):)[a-z][\w+.-]*://).*@")
_QUERY = re.compile(rf"(?i)([?&;](?:{_LONG}|{_SHORT})=)[^&#\r\n]*")
_NAMED = re.compile(rf"(?i)((?<![\w.-]){_LONG}=)(?:'[^'\r\n]*'|\"[^\"\r\n]*\"|[^&\s#]+)")
_FLAG = re.compile(rf"(?i)--?(?:{_LONG}|{_SHORT})")


def redact(text: str) -> str:
    """An address, or any text with addresses in it, without passwords and tokens.

    Example:
        >>> redact("http://ann:se/cr@t@host:5000/?token=abc&page=1")
        'http://***@host:5000/?token=***&page=1'
    """
    return _NAMED.sub(r"\1***", _QUERY.sub(r"\1***", _LOGIN.sub(r"\1***@", text)))


def redact_command(argv: Sequence[str]) -> str:
    """A command as one would type it, without passwords and tokens.

    Example:
        >>> redact_command(["search", "--api-token", "abc", "--nb-clusters=4"])
        "search --api-token '***' --nb-clusters=4"
    """
    before = ["", *argv]
    words = ["***" if _FLAG.fullmatch(last) else _word(word) for last, word in zip(before, argv, strict=False)]
    return shlex.join(words)


def _word(word: str) -> str:
    """A word without its secret, which goes to the end of the word whatever characters it has."""
    name, equals, _ = word.partition("=")
    return f"{name}=***" if equals and (_FLAG.fullmatch(name) or re.fullmatch(_LONG, name, re.I)) else redact(word)
