"""Names of searches and runs, paths, and addresses of SQLite files."""

import os
import shlex
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, text

from dcml_tune import browse, evaluate, train
from dcml_tune.cli.parser import command
from dcml_tune.config.errors import SettingError
from dcml_tune.data import __main__ as data
from dcml_tune.report import __main__ as report
from dcml_tune.runs import paths
from dcml_tune.search import __main__ as search
from dcml_tune.tracking import __main__ as tracking
from dcml_tune.tracking.mlflow_api import safe_key
from dcml_tune.utils.stored import printable

ODD = "r?u%20n#s & {y}'\"<>\\;$HOME[b]*é☃"
"""A directory that means something else in a URL, an address of SQLAlchemy, HTML, a shell or a template."""

BAD_NAMES = {
    "": "empty",
    " ": "space",
    "a ": "space",
    ".": "dot",
    "..": "dot",
    ".hidden": "dot",
    "-x": "dash",
    "/abs/x": "must not hold",
    "sweep/lr": "must not hold",
    "../esc": "dot",
    "a/../b": "must not hold",
    "a\\b": "must not hold",
    "a'b": "must not hold",
    'a"b': "must not hold",
    "a`b": "must not hold",
    "a\nb": "control",
    "a\x1b[31mb": "control",
    "a\x00b": "control",
    "a\udcffb": "control character or bytes",
    "a\u202eb": "control",
    "x" * 256: "256 bytes",
    "é" * 128: "256 bytes",
    "mlflow.db": "share",
    "MLFLOW.DB": "share",
    "mlflow.db-wal": "share",
    "mlflow.db.lock": "share",
    "mlartifacts": "share",
    "store": "share",
    "test-ledger.jsonl": "share",
    "test-ledger.jsonl.lock": "share",
    "wandb": "share",
}


@pytest.mark.parametrize(("name", "rule"), BAD_NAMES.items())
def test_a_name_that_cannot_work_is_refused(name, rule):
    """With the flag, the rule, and what to do."""
    with pytest.raises(SettingError, match=rule) as refused:
        paths.new_name(name)
    assert str(refused.value).startswith("--name ")
    assert "choose another name" in str(refused.value)


@pytest.mark.parametrize(
    "name",
    ["lr%20x", "a?b", "a#b", "a&b", "two  spaces", "a<b>", "{x}", "$HOME;ls", "[b]", "é☃", "~x", "x" * 255, "a:b"],
)
def test_a_name_that_works_is_taken_as_it_is(name):
    """Whatever it would mean elsewhere."""
    assert paths.new_name(name) == name


COMMANDS = [
    (search.main, ["emoji", "--name"]),
    (search.main, ["--extend"]),
    (search.main, ["--repeat-trial"]),
    (train.main, ["emoji", "--name"]),
    (train.main, ["--resume"]),
    (report.main, []),
    (browse.main, []),
    (tracking.main, ["flush"]),
]


@pytest.mark.parametrize(
    "name", ["x" * 300, "", "no/such", "a\x1bb", "a\udcffb", "..", "mlflow.db", "~nobody-of-that-name/x"]
)
@pytest.mark.parametrize(("main", "words"), COMMANDS)
def test_every_command_refuses_a_name_in_one_line(main, words, name, tmp_path, monkeypatch, capsys):
    """By the one check, and before anything is written."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises((SettingError, SystemExit)) as refused:
        main([*words, name])
    said = capsys.readouterr()
    line = said.err.strip() if isinstance(refused.value, SystemExit) else str(refused.value)
    assert len(line.splitlines()) == 1
    assert said.out == ""
    assert [path for path in tmp_path.rglob("*") if path.name != "runs"] == []


@pytest.mark.parametrize(
    "output", ["~nobody-of-that-name/x", "a\nb", "a\udcffb", "", "x" * 470, "/proc/nowhere", "s3://bucket/runs"]
)
@pytest.mark.parametrize(
    ("main", "words"),
    [
        (search.main, ["emoji"]),
        (search.main, ["--resume", "s"]),
        (search.main, ["--resume"]),
        (search.main, ["--repeat-trial", "s/000"]),
        (train.main, ["emoji"]),
        (evaluate.main, ["model"]),
        (report.main, ["s"]),
        (browse.main, []),
        (tracking.main, ["flush", "s"]),
        (data.main, ["emoji"]),
    ],
)
def test_every_command_refuses_an_output_directory_in_one_line(main, words, output, tmp_path, monkeypatch, capsys):
    """One that nothing can be written to, or that holds no search."""
    if output == "/proc/nowhere" and words == ["--resume"]:
        pytest.skip("nothing is written there")
    monkeypatch.chdir(tmp_path)
    with pytest.raises((SettingError, SystemExit)) as refused:
        main([*words, "--output-dir", output])
    said = capsys.readouterr().err.strip() if isinstance(refused.value, SystemExit) else str(refused.value)
    assert len(said.splitlines()) == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("dataset", ["folder", "cars"])
@pytest.mark.parametrize("main", [search.main, train.main, data.main])
def test_a_dataset_directory_of_an_unknown_user_is_refused(main, dataset, tmp_path):
    """As an output directory is."""
    with pytest.raises(SettingError, match=r"dataset.dir.~nobody-of-that-name/x") as refused:
        main([dataset, "--dataset-dir", "~nobody-of-that-name/x", "--output-dir", str(tmp_path)])
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    "word", ["s", "runs/s", "./runs/s", "runs/s/", "runs/../runs/s", "{here}/runs/s", "elsewhere/t"]
)
def test_a_search_is_named_by_name_or_path(word, tmp_path, monkeypatch):
    """A word with a slash is a path; another one is a name below the output directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "s").mkdir(parents=True)
    (tmp_path / "elsewhere" / "t").mkdir(parents=True)
    found = paths.named_directory("--resume", word.format(here=tmp_path), paths.output_directory("runs"))
    assert found == tmp_path / ("elsewhere/t" if "t" in word.split("/")[-1] else "runs/s")


def test_the_directory_itself_may_be_where_one_is(tmp_path, monkeypatch):
    """`--resume .`, and names that version 0.1 took."""
    (tmp_path / "it's").mkdir()
    monkeypatch.chdir(tmp_path / "it's")
    assert paths.named_directory("--resume", ".", tmp_path) == tmp_path / "it's"
    assert paths.named_directory("--resume", "it's", tmp_path) == tmp_path / "it's"


def test_an_sqlite_file_is_where_its_address_says(tmp_path):
    """Made by SQLAlchemy and MLflow's own rules: nothing but the file is made."""
    output = tmp_path / ODD
    output.mkdir()
    address = paths.mlflow_address(output)
    assert paths.sqlite_file(address) == output / "mlflow.db"
    from mlflow.store.db.utils import _make_parent_dirs_if_sqlite

    _make_parent_dirs_if_sqlite(address)
    with create_engine(address).begin() as connection:
        connection.execute(text("create table a (b)"))
    assert os.listdir(tmp_path) == [ODD]
    assert os.listdir(output) == ["mlflow.db"]


@pytest.mark.parametrize("missing", [0, 1])
def test_a_directory_is_as_deep_as_sqlite_opens(missing, tmp_path):
    """The longest that is taken works; one byte more is refused."""
    base = tmp_path
    while len(str(base)) < paths.LONGEST_DIRECTORY - 200:
        base = base / ("d" * 90)
    name = "n" * (paths.LONGEST_DIRECTORY - len(str(base)) - 1 + missing)
    if missing:
        with pytest.raises(SettingError, match="has a path of 481 bytes"):
            paths.new_directory(base, name)
        return
    directory = paths.new_directory(base, name)
    directory.mkdir(parents=True)
    for file in ("optuna.db", "optuna.db.damaged"):
        with closing(sqlite3.connect(directory / file)) as connection, connection:
            connection.execute("create table a (b)")


@pytest.mark.parametrize(
    "address",
    [
        "sqlite://",
        "sqlite:///",
        "sqlite:///:memory:",
        "sqlite://host/x.db",
        "sqlite:////tmp/r?uns/mlflow.db",
        "sqlite:////tmp/x.db?mode=ro&uri=true",
        "sqlite:x",
    ],
)
def test_an_address_that_names_no_file_is_refused(address):
    """Or that names another file than it seems to."""
    with pytest.raises(SettingError):
        paths.sqlite_file(address)


# Any text, and often the characters that mean something somewhere.
SPECIAL = st.text(
    st.one_of(st.sampled_from("%?#& '\"<>\\\n/.~-{}[]$;:@*é☃\u202e\x1b\udcff"), st.characters()), max_size=40
)
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(name=SPECIAL)
@example(name="x" * 255)
@example(name="☃" * 85)
def test_a_name_works_everywhere_or_nowhere(name, tmp_path):
    """Whatever is taken is one folder of this name, one key of MLflow, one word of a shell, and one line of a terminal."""
    try:
        directory = paths.new_directory(tmp_path, name)
    except SettingError as refused:
        said = printable(str(refused))
        assert len(said.splitlines()) == 1
        return
    assert directory.parent == tmp_path
    directory.mkdir(exist_ok=True)
    assert name in os.listdir(tmp_path)
    assert paths.named_directory("--resume", name, tmp_path) == directory
    assert paths.named_directory("--resume", f"{directory}/", Path("/elsewhere")) == directory
    assert paths.sqlite_file(paths.study_address(directory)) == directory / "optuna.db"
    assert shlex.split(command("dcml_tune.search", "--resume", name))[3:] == ["--resume", name]
    assert not name.startswith("-")
    assert safe_key(name) == name
    assert printable(name) == name


@QUICK
@given(parts=st.lists(SPECIAL, min_size=1, max_size=3))
def test_an_output_directory_works_everywhere_or_nowhere(parts, tmp_path):
    """Whatever is taken is where SQLAlchemy, Optuna's template and MLflow's address of files look for it."""
    from mlflow.utils.file_utils import local_file_uri_to_path

    assume(all(part not in ("", ".", "..") and "/" not in part and "\x00" not in part for part in parts))
    # Python decodes a file name with surrogates from U+DC80 on; no file name has the others.
    assume(not any("\ud800" <= each < "\udc80" or "\udd00" <= each <= "\udfff" for part in parts for each in part))
    assume(all(len(os.fsencode(part)) <= 255 for part in parts))
    try:
        output = paths.output_directory(str(tmp_path.joinpath(*parts)))
    except SettingError as refused:
        said = printable(str(refused))
        assert len(said.splitlines()) == 1
        return
    address = paths.mlflow_address(output)
    assert paths.sqlite_file(address) == output / "mlflow.db"
    assert address.format() == address
    assert Path(address.removeprefix("sqlite:///")).parent in (Path(), output)
    assert local_file_uri_to_path((output / "mlartifacts").as_uri()) == str(output / "mlartifacts")
    assert shlex.split(command("dcml_tune.report", "s", "--output-dir", str(output)))[-1] == str(output)
