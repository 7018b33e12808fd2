"""Addresses of database servers, and the Python package that each of them needs."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from dcml_tune.config.errors import SettingError
from dcml_tune.utils.redaction import redact

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

_PACKAGES = {
    "psycopg": "dcml-tune[postgresql]",
    "psycopg2": "psycopg2-binary",
    "mysqldb": "mysqlclient",
    "pymysql": "PyMySQL",
    "mysqlconnector": "mysql-connector-python",
    "pymssql": "pymssql",
}
"""Driver of SQLAlchemy -> what to install, where its package has another name."""


def refuse_missing_driver(shown: str, address: str) -> None:
    """Refuse the address of a database whose Python package is not installed. No connection is made.

    Args:
        shown: the flag with its value, as in the message; its password is left out of it.
        address: SQLAlchemy address.

    Raises:
        SettingError: if SQLAlchemy does not know the driver, or cannot import it.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import NoSuchModuleError

    url = make_url(address)
    try:
        dialect = url.get_dialect()
        dialect.import_dbapi()
    except NoSuchModuleError:
        known = f"{url.get_backend_name()}://"
        raise SettingError(
            f"{redact(shown)}: SQLAlchemy knows no driver {url.drivername}; give the address without it, {known}..."
        ) from None
    except ImportError as error:
        package = _PACKAGES.get(_driver(url), _driver(url))
        raise SettingError(
            f"{redact(shown)}: needs a Python package that is not installed ({error}); install it: "
            f"pip install {shlex.quote(package)}"
        ) from None


def _driver(url: URL) -> str:
    return url.get_dialect().driver
