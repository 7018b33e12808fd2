"""The study of a search on a PostgreSQL server: its address, its errors, and the check that it can be used.

The password is kept in memory alone. Where it is not part of the address, PostgreSQL's own client finds it: in PGPASSWORD, or
in ~/.pgpass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dcml_tune.config.errors import SettingError
from dcml_tune.runs.databases import refuse_missing_driver
from dcml_tune.utils.redaction import redact
from dcml_tune.utils.tracebacks import one_line

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial
    from sqlalchemy.engine import URL, Connection

FLAG = "--study-uri"

CONNECT_S = 10
"""Longest wait for a connection, in seconds; signals are not handled in that time."""

# A server that is gone without a word is noticed after about a minute.
_CONNECT_OPTIONS: dict[str, Any] = {
    "connect_timeout": CONNECT_S,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
    "application_name": "dcml_tune",
}
_SECRET_OPTIONS = ("password", "sslpassword", "passfile")

# Classes of SQLSTATE: connection, resources, operator intervention, rollback, and object not in prerequisite state.
_MAY_PASS = ("08", "53", "57", "40", "55")
_LOGIN_REFUSED = (
    "password authentication failed",
    "no password supplied",
    "no pg_hba.conf entry",
    "does not exist",
    "permission denied",
    "could not translate host name",
    "failed to resolve host",
)
_MADE_BY_ANOTHER = ("42P07", "42710", "23505")


def checked_address(text: str) -> str:
    """The address of a study server as SQLAlchemy writes it. No connection is made.

    Raises:
        SettingError: if it is none of PostgreSQL, has no host or database, or its Python package is not installed.
    """
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    shown = f"{FLAG} {redact(text)}"
    # Without an at sign: what is shown before the last one of a line is taken for a login, and removed.
    rule = (
        "must be postgresql://HOST:PORT/DATABASE, with a user before HOST if it needs one; in a user or password write / as %2F, an "
        "at sign as %40, ? as %3F, # as %23"
    )
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise SettingError(f"{shown}: {rule}") from None
    if url.get_backend_name() == "sqlite":
        raise SettingError(f"{shown}: an SQLite file is in the directory of its search; leave the flag out")
    if url.get_backend_name() != "postgresql" or not url.database or not (url.host or "host" in url.query):
        raise SettingError(f"{shown}: {rule}")
    refuse_missing_driver(f"{FLAG} {text}", text)
    address = url.render_as_string(hide_password=False)
    if make_url(address) != url:  # SQLAlchemy does not escape the name of a database
        raise SettingError(f"{shown}: {rule}")
    return address


def without_password(address: str) -> str:
    """The address as it is recorded and shown.

    Example:
        >>> without_password("postgresql://ann:secret@db:5432/studies?sslmode=require&sslpassword=x")
        'postgresql://ann@db:5432/studies?sslmode=require'
    """
    from sqlalchemy.engine import URL, make_url

    url = make_url(address).difference_update_query(_SECRET_OPTIONS)
    bare = URL.create(url.drivername, url.username, None, url.host, url.port, url.database, url.query)
    return bare.render_as_string()


def engine_options(address: str) -> dict[str, Any]:
    """Options of SQLAlchemy's engine: connections that the server has closed are replaced, and no call waits for ever."""
    from sqlalchemy.engine import make_url

    given = make_url(address).query
    return {
        "pool_pre_ping": True,
        "connect_args": {name: value for name, value in _CONNECT_OPTIONS.items() if name not in given},
    }


def is_of_server(error: BaseException) -> bool:
    """Whether an error comes from PostgreSQL's client."""
    return type(error).__module__.partition(".")[0] in ("psycopg", "psycopg2")


def may_pass(error: BaseException) -> bool:
    """Whether the same call may succeed later: the server is away, starts, or has no connection left."""
    state = _state(error)
    if state is not None:
        return state.startswith(_MAY_PASS)
    is_connection = type(error).__name__ in ("OperationalError", "InterfaceError", "ConnectionTimeout")
    return is_connection and not any(words in str(error) for words in _LOGIN_REFUSED)


def is_made_by_another(error: BaseException) -> bool:
    """Whether another process created the same table at the same time."""
    return is_of_server(error) and _state(error) in _MADE_BY_ANOTHER


def reason(error: BaseException) -> str:
    """An error of the server in one line."""
    return redact(one_line(error))


def remedy(error: BaseException) -> str:
    """What a user can do about an error that does not pass by itself."""
    text = str(error)
    if "password" in text or "pg_hba" in text:
        return f"give the password in PGPASSWORD or ~/.pgpass, or the whole address by {FLAG}"
    if "resolve" in text or "translate host" in text or "does not exist" in text:
        return f"correct the address, or create it on the server, and give it by {FLAG}"
    return "see to the server, and then resume the search"


def check_server(address: str, name: str, *, has_begun: bool) -> None:
    """Check that the server can be used for a study. Nothing is written.

    Args:
        address: of the server.
        name: of the study.
        has_begun: whether the study must be there.

    Raises:
        SettingError: if it may not be written there, or is missing, or another version of Optuna wrote it.
        Exception: an error of the connection.
    """
    from sqlalchemy import create_engine, text

    engine = create_engine(address, **engine_options(address))
    try:
        with engine.connect() as connection:
            has_tables = connection.execute(text("SELECT to_regclass('studies') IS NOT NULL")).scalar()
            _refuse_without_right(connection, engine.url, has_tables=bool(has_tables))
        if has_tables:
            read_trials(address, name)
    except KeyError:
        has_tables = False
    except RuntimeError as error:
        raise SettingError(
            f"{FLAG} {redact(address)}: its tables were made by another version of Optuna ({error})"
        ) from None
    finally:
        engine.dispose()
    if has_begun and not has_tables:
        raise SettingError(
            f"{FLAG} {redact(address)}: holds no study {name}; restore it on the server, or start a new search (the trials' "
            "checkpoints and their MLflow runs are still there)"
        )


def _refuse_without_right(connection: Connection, url: URL, *, has_tables: bool) -> None:
    from sqlalchemy import text

    right = "coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)"
    if has_tables:
        right = "has_table_privilege('studies', 'INSERT')"
    if not connection.execute(text(f"SELECT {right}")).scalar():
        raise SettingError(
            f"{FLAG} {redact(url.render_as_string())}: the user may not write there; give it a database of its own, or the "
            "right to create tables in the schema"
        )


def read_trials(address: str, name: str) -> list[FrozenTrial]:
    """The trials of a study; nothing is written.

    Raises:
        KeyError: if the server holds no study of this name.
        RuntimeError: if another version of Optuna made its tables.
    """
    import optuna

    storage = optuna.storages.RDBStorage(address, engine_kwargs=engine_options(address), skip_table_creation=True)
    try:
        return optuna.load_study(study_name=name, storage=storage).get_trials(deepcopy=False)
    finally:
        storage.engine.dispose()


def _state(error: BaseException) -> str | None:
    """The SQLSTATE of an error; None if it has none, as one of the connection."""
    found: str | None = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    return found
