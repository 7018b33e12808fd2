"""The address of --storage: its form, and a test whether this machine can write and read there."""

from __future__ import annotations

import re
import uuid

from dcml_tune.config.errors import SettingError
from dcml_tune.runs.storage import FLAG, Storage, StorageError, reason_of
from dcml_tune.utils.stored import is_shown

_NOT_SHARED = frozenset({"memory", "data", "zip", "tar", "http", "https", "github", "git"})


def checked_address(text: str) -> str:
    """Return the address of --storage, after a test: an object is written, read and removed there.

    Raises:
        SettingError: if it is no address, holds a password, its package is missing, or it cannot be written and read.
    """
    address = well_formed(text)
    from fsspec import get_filesystem_class

    scheme = address.partition(":")[0]
    try:
        get_filesystem_class(scheme)
    except ImportError as error:
        package = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}.get(scheme)
        remedy = f"install {package} on all nodes (pip install {package})" if package else f"on all nodes: {error}"
        raise SettingError(f"{FLAG} {address}: Python finds no package for {scheme}:// addresses; {remedy}") from None
    except ValueError:
        raise SettingError(f"{FLAG} {address}: fsspec knows no {scheme}:// addresses; give s3:// or file://") from None
    if fault := storage_fault(address):
        raise SettingError(f"{FLAG} {address}: {fault}")
    return address


def storage_fault(address: str) -> str | None:
    """Write, read and remove an object; returns why that is not possible, with the remedy, or None."""
    name, content = f".writable-{uuid.uuid4().hex}", uuid.uuid4().hex.encode()
    remedy = "give an address that this user may read and write, and its credentials in the environment"
    try:
        place = Storage(address, patience_s=0.0)
        place.write(name, content)
        found = place.read(name)
        place.remove([name])
    except StorageError as error:
        return f"cannot be used ({reason_of(error.__cause__ or error)}); {remedy}"
    except Exception as error:  # also of a package that cannot be imported, or has no credentials
        return f"cannot be used ({reason_of(error)}); {remedy}"
    return None if found == content else f"does not return what was written; {remedy}"


def well_formed(text: str) -> str:
    """Return an address without a slash at its end; nothing is opened.

    Raises:
        SettingError: if it is no address of a place that several machines can share, or holds a password.
    """
    match = re.fullmatch(r"([a-z][a-z0-9+.-]*)://(.*)", text, re.IGNORECASE | re.DOTALL)
    if match is None:
        absolute = f"file://{text}" if text.startswith("/") else "file:///PATH"
        raise SettingError(
            f"{FLAG} {text or repr(text)}: is no address; give s3://BUCKET/PREFIX, or {absolute} for a directory"
        )
    scheme, rest = match[1].lower(), match[2].rstrip("/")
    if ":" in rest.partition("@")[0] and "@" in rest.partition("/")[0]:
        shown = f"{scheme}://***@{rest.partition('@')[2]}"
        raise SettingError(f"{FLAG} {shown}: holds a password, which would be recorded; give it in the environment")
    if not all(map(is_shown, text)) or not rest:
        raise SettingError(f"{FLAG} {text!r}: is not a valid address; give s3://BUCKET/PREFIX, or file:///PATH")
    if scheme in _NOT_SHARED:
        raise SettingError(f"{FLAG} {text}: {scheme}:// is no storage that processes share; give s3:// or file:///PATH")
    if scheme in ("file", "local") and (not rest.startswith("/") or ".." in rest.split("/")):
        raise SettingError(f"{FLAG} {text}: a relative path; give file:///PATH with an absolute path")
    return f"{scheme}://{rest}"
