"""An MLflow store that will not take what is recorded is refused ahead: real databases, and servers of a few lines."""

import http.server
import sys
import threading

import pytest
from broken_files import dangling, directory, execute, fifo, killed_in_a_transaction

from dcml_tune.config.errors import SettingError
from dcml_tune.search.flags import read_command_line
from dcml_tune.tracking import Tracker
from dcml_tune.tracking.checking import check_store
from dcml_tune.tracking.uris import refuse_missing_package


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A store with our experiment."""
    output = tmp_path_factory.mktemp("store")
    Tracker.open(output, "s").close()
    return output / "mlflow.db"


def another(file):
    file.unlink()
    execute("CREATE TABLE studies (x)")(file)


REFUSED = {
    "noise": (lambda file: file.write_bytes(b"noise" * 1000), "file is not a database"),
    "torn": (lambda file: file.write_bytes(file.read_bytes()[:5000]), "malformed"),
    "a directory": (directory, "is not a file"),
    "a FIFO": (fifo, "is not a file"),
    "a dangling link": (dangling, "is not a file"),
    "another program's": (another, "is the database of another program"),
    "a newer MLflow": (execute("UPDATE alembic_version SET version_num = 'ffff'"), "of a newer MLflow"),
    "an older MLflow": (execute("UPDATE alembic_version SET version_num = '451aebb31d03'"), "mlflow db upgrade"),
    "deleted": (execute("UPDATE experiments SET lifecycle_stage = 'deleted'"), "was deleted: `mlflow experiments restore`"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_database_that_cannot_be_used_is_refused(template, tmp_path, case):
    """In one line that names it, and it is left as it is."""
    file, (change, expected) = tmp_path / "mlflow.db", REFUSED[case]
    file.write_bytes(template.read_bytes())
    change(file)
    before = file.read_bytes() if file.is_file() else None
    with pytest.raises(SettingError, match=expected) as refused:
        check_store(f"sqlite:///{file}")
    assert "\n" not in str(refused.value)
    assert before == (file.read_bytes() if file.is_file() else None)


def test_a_store_whose_process_was_killed_while_it_wrote_is_good(template, tmp_path):
    """What that process had begun is rolled back: the check cannot do it by a connection that only reads."""
    file = tmp_path / "mlflow.db"
    file.write_bytes(template.read_bytes())
    killed_in_a_transaction(file)
    assert check_store(f"sqlite:///{file}")
    assert not file.with_name("mlflow.db-journal").exists()


def test_a_place_where_nothing_can_be_made_is_refused():
    """Something that is no directory stands in the way."""
    with pytest.raises(SettingError, match="/dev/null cannot be written"):
        check_store("sqlite:////dev/null/x/mlflow.db")


def test_good_stores(template, tmp_path):
    """One that is there, one that is empty, one that is missing: nothing is made, and nothing written."""
    before = template.read_bytes()
    (tmp_path / "empty.db").touch()
    assert check_store(f"sqlite:///{template}", make=True)
    assert check_store(f"sqlite:///{tmp_path / 'empty.db'}", make=True)
    assert check_store(f"sqlite:///{tmp_path / 'a' / 'b' / 'new.db'}", make=True)
    assert template.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["empty.db"]


@pytest.fixture
def answering():
    """A server that answers everything in one way, and its address."""
    servers = []

    def start(status, text):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            do_POST = do_GET  # noqa: N815

            def log_message(self, *_):
                pass

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://ann:geheim@127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


ANSWERS = {
    "no login": (401, "login", "the server refuses"),
    "no right": (403, '{"error_code": "PERMISSION_DENIED", "message": "no"}', "the server refuses"),
    "another server": (404, "<html>not found</html>", "answers, but not as MLflow does"),
    "a page": (200, "<html>hello</html>", "answers, but not as MLflow does"),
    "deleted": (
        200,
        '{"experiment": {"experiment_id": "1", "name": "dcml_tune", "lifecycle_stage": "deleted"}}',
        "was deleted",
    ),
    "busy": (503, "later", None),
    "bad gateway": (502, "later", None),
    "good": (200, '{"experiment": {"experiment_id": "1", "name": "dcml_tune", "lifecycle_stage": "active"}}', True),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_a_server_is_asked(answering, case, monkeypatch):
    """What it would say again tomorrow is refused, without its password; what may pass is waited for."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    status, text, expected = ANSWERS[case]
    uri = answering(status, text)
    if isinstance(expected, str):
        with pytest.raises(SettingError, match=expected) as refused:
            check_store(uri)
        assert "geheim" not in str(refused.value)
    else:
        assert check_store(uri) == bool(expected)


def test_a_server_that_is_away_is_waited_for(monkeypatch):
    """Its records wait."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert not check_store("http://127.0.0.1:9")


MISSING = {
    "postgresql://ann:geheim@127.0.0.1:9/db": ("psycopg", "pip install 'dcml-tune[postgresql]'"),
    "postgresql+psycopg2://ann:geheim@127.0.0.1:9/db": ("psycopg2", "pip install psycopg2-binary"),
    "postgresql+pg8000://ann:geheim@127.0.0.1:9/db": ("pg8000", "pip install pg8000"),
    "mysql://ann:geheim@127.0.0.1:9/db": ("MySQLdb", "pip install mysqlclient"),
    "mysql+pymysql://ann:geheim@127.0.0.1:9/db": ("pymysql", "pip install PyMySQL"),
    "mssql://ann:geheim@127.0.0.1:9/db": ("pyodbc", "pip install pyodbc"),
    "mysql+foo://ann:geheim@127.0.0.1:9/db": (None, "SQLAlchemy knows no driver mysql+foo"),
}


@pytest.mark.parametrize("uri", MISSING)
def test_a_driver_that_is_missing_is_refused_with_its_package(uri, monkeypatch):
    """By every command, before anything starts, and where the address comes from a record: no record could ever arrive."""
    module, remedy = MISSING[uri]
    if module:
        monkeypatch.setitem(sys.modules, module, None)
    for call in (check_store, lambda uri: read_command_line(["emoji", "--tracking-uri", uri])):
        with pytest.raises(SettingError) as refused:
            call(uri)
        assert remedy in str(refused.value)
        assert "geheim" not in str(refused.value)
        assert "\n" not in str(refused.value)


def test_the_driver_that_is_proposed_can_be_installed():
    """`dcml-tune[postgresql]` brings what SQLAlchemy takes for postgresql://."""
    refuse_missing_package("postgresql://ann@127.0.0.1:9/db")
