"""Text without passwords."""

import shlex

import pytest

from dcml_tune import browse, evaluate, train
from dcml_tune.config.errors import SettingError
from dcml_tune.report import __main__ as report
from dcml_tune.report.page import Commands, Section, Table, Text, render
from dcml_tune.search import __main__ as search
from dcml_tune.tracking import Tracker, compare_url, environment_tags, flush, tracking_uri, ui_command
from dcml_tune.tracking import __main__ as tracking
from dcml_tune.tracking.reading import read_runs
from dcml_tune.tracking.uris import absolute_uri
from dcml_tune.utils.redaction import redact, redact_command

SECRET = "geheim7"
LOGINS = [
    SECRET,
    f"12/{SECRET}",
    f"a@{SECRET}",
    f"{SECRET}@b",
    f"a b {SECRET}",
    f"a'b{SECRET}",
    f"a\"b {SECRET}'",
    f"?x={SECRET}",
    f"#{SECRET}",
    f"a:b:{SECRET}",
    f"a%2F{SECRET}",
    f"a\\{SECRET}",
    f"[{SECRET}]",
    f"<{SECRET}>",
]
SCHEMES = [
    "http",
    "https",
    "HTTP",
    "htps",
    "postgresql",
    "postgresql+psycopg2",
    "mysql+pymysql",
    "mssql",
    "ftp",
    "sqlite",
]
KEYS = [
    "auth",
    "key",
    "pwd",
    "pass",
    "sig",
    "token",
    "password",
    "api_key",
    "access-key",
    "secret",
    "client_secret",
    "X-Sig",
]

HOSTILE = [f"{scheme}://ann:{login}@host:5000/x" for scheme in SCHEMES[:-1] for login in LOGINS]
HOSTILE += [f"https://{SECRET}@host", f"http://:{SECRET}@host"]
HOSTILE += [
    f"https://host/x?{key}={value}" for key in KEYS for value in (SECRET, f"a b{SECRET}", f"'{SECRET}", f'"a {SECRET}"')
]
HOSTILE += [f"https://host/x?page=1&{key}={SECRET}&a=b" for key in KEYS]


@pytest.mark.parametrize("address", HOSTILE)
def test_no_function_that_writes_an_address_shows_its_password(address):
    """Alone, in an error, in a command, in the report, and where it is refused."""
    assert SECRET not in redact(address)
    assert SECRET not in redact(f"ConnectionError: {address} takes no records (timed out)")
    assert SECRET not in redact_command(["search", "--tracking-uri", address])
    assert SECRET not in redact_command(["search", f"--tracking-uri={address}"])
    assert SECRET not in str(environment_tags("f00", ["search", "--tracking-uri", address]))
    section = Section(title="x", parts=[Text(address), Commands({"a": shlex.join(["x", address])}),
                                        Table(title=address, columns=[address], rows=[[address]])])  # fmt: skip
    assert SECRET not in render(
        name=address, written=address, banners=[address], head={"a": address}, sections=[section]
    )
    try:
        taken = absolute_uri(address)
    except SettingError as error:
        said = str(error)
        assert SECRET not in said
        assert len(said.splitlines()) == 1
    else:
        assert SECRET not in ui_command(taken)
        assert SECRET not in compare_url(taken, "1", ["2"])


@pytest.mark.parametrize(
    ("main", "words"),
    [
        (search.main, ["emoji", "--dry-run"]),
        (search.main, ["--resume", "s"]),
        (train.main, ["emoji"]),
        (evaluate.main, ["m"]),
        (browse.main, []),
        (report.main, ["s"]),
        (tracking.main, ["flush", "s"]),
    ],
)
@pytest.mark.parametrize(
    ("address", "rule"),
    [
        (f"htps://ann:{SECRET}@host", r"must be one of http\(s\)"),
        (f"http://ann:12/{SECRET}@host", "write / as %2F"),
        (f"http://ann:1?{SECRET}@host", "write / as %2F"),
        (f"http://ann:1\\{SECRET}@host", "%5C"),
        (f"http://host/?token={SECRET}", "nothing may follow"),
        (f"http://ann:{SECRET}@host:port", "must be http"),
        ("mlruns", "no longer supports a directory"),
        ("file:///tmp/mlruns", "no longer supports a directory"),
        ("", "must be one of"),
        ("sqlite:///r?uns/mlflow.db", "%3F"),
        (f"postgresql://ann:{SECRET}@host:port/x", "SQLAlchemy"),
    ],
)
def test_every_command_refuses_an_address_that_cannot_work_first_of_all(
    main, words, address, rule, tmp_path, monkeypatch
):
    """Before anything is read or written, in one line without the password."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError, match=rule) as refused:
        main([*words, "--tracking-uri", address])
    assert SECRET not in str(refused.value)
    assert str(refused.value).startswith("tracking-uri=")
    assert redact(str(refused.value)) == str(refused.value), "the rule is removed where the message is printed"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "address",
    [
        "http://host:5000",
        "https://ann:p%2Fw@host/mlflow",
        "http://ann:a b'c\"d@host:5000",
        "http://[::1]:5000",
        "postgresql://ann:x@db/mlflow",
        "postgresql+psycopg2://ann:x@db:5432/mlflow",
        "mysql+pymysql://ann:x@db/mlflow",
        "mssql+pyodbc://ann:x@db/mlflow?driver=ODBC+Driver+18+for+SQL+Server",
        "databricks",
        "databricks://profile",
    ],
)
def test_what_mlflow_takes_is_taken(address, tmp_path):
    """Servers, databases, Databricks."""
    assert absolute_uri(address) == address
    assert tracking_uri(address, tmp_path) == address


@pytest.mark.parametrize(
    "said",
    [
        "sqlite:////home/a@b:c/mlflow.db",
        "file:///home/a@b/x",
        "key=000, signal=3, recall@1 0.5",
        "ann@host",
        "http://host:5000/#/compare-runs?runs=%5B%5D",
        "pass 2 of 3; authors=2; keys=5; monkey=1",
        "design=x",
    ],
)
def test_what_is_no_secret_stays(said):
    """Files, measures, mail addresses."""
    assert redact(said) == said


@pytest.mark.parametrize(
    "words",
    [
        ["--api-token", SECRET],
        [f"--password={SECRET} {SECRET}"],
        [f"--password='{SECRET}' {SECRET}"],
        [f"MY_TOKEN=a&{SECRET}"],
        ["--auth", SECRET],
        [f"--api-key=a b {SECRET}"],
        ["-pwd", SECRET],
    ],
)
def test_a_command_shows_no_secret(words):
    """As the value of a flag, or of a variable, to the end of the word."""
    assert SECRET not in redact_command(["search", *words, "--nb-clusters", "4"])
    assert redact_command(["search", *words, "--nb-clusters", "4"]).endswith(" --nb-clusters 4")


def test_a_spool_holds_no_password(tmp_path, caplog):
    """Nor what is logged while the server is away, nor what a reader says of it."""
    uri = f"http://ann:a b'x%2F{SECRET}@127.0.0.1:9"
    tracker = Tracker.open(tmp_path, "s", uri=uri)
    tags = environment_tags("f00", ["search", "--tracking-uri", uri])
    tracker.start("s", name="s", role="search", params={"where": uri}, tags=tags)
    tracker.end("s", "FAILED", reason=f"cannot reach {uri} in time")
    assert tracker.close(30.0) == 2
    for read in (lambda: read_runs(uri, "x"), lambda: flush(tmp_path / "s" / "tracking")):
        with pytest.raises(SettingError) as refused:
            read()
        assert SECRET not in str(refused.value)
    assert SECRET not in caplog.text
    assert "takes no records" in caplog.text
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 1
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
