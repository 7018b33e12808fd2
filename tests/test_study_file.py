"""The study's file is locked, unreadable, damaged, missing: real files, and real processes that hold them."""

import itertools
import logging
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import optuna
import pytest
from broken_files import dangling, directory, execute, fifo, killed_in_a_transaction

from dcml_tune.config.errors import SettingError
from dcml_tune.runs import study_file
from dcml_tune.runs.study import KEY, read_study
from dcml_tune.runs.study_file import copy_of, copy_study, mend
from dcml_tune.utils.signals import SearchStopped, signal_handled, stopped_by_signals
from search_spaces.space import Float, SearchSpace
from trainables.searcher import Launching, OptunaSearcher, Sampling, StudyOptions
from trainables.study_file import PatientStorage

SPACE = SearchSpace(name="emoji", published={"dataset": "emoji"}, domains={"masking_lambda": Float(1e-3, 1.0)})
METRIC = "val/recall_at_1"

HOLD = """
import sqlite3, sys, time
held = sqlite3.connect(sys.argv[1], isolation_level=None)
held.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
held.execute("ROLLBACK")
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A study of two trials and its copy: its tables take seconds to make."""
    directory = tmp_path_factory.mktemp("template")
    searcher = opened(directory)
    for name in "ab":
        searcher.suggest(name)
        searcher.on_trial_result(name, {f"{METRIC}_best": 0.4, "epoch": 1})
    copy_study(directory / "optuna.db")
    return directory


@pytest.fixture
def search(template, tmp_path):
    """The directory of a search whose process has ended while its trials ran."""
    shutil.copytree(template, tmp_path / "s")
    (tmp_path / "s" / "trials" / "000").mkdir(parents=True)
    return tmp_path / "s"


@pytest.fixture
def running(search):
    """Its searcher, whose trials run again."""
    searcher = opened(search, patience=9)
    for name in "ab":
        searcher.suggest(name)
    return searcher


def opened(directory, **options):
    place = f"sqlite:///{directory / 'optuna.db'}"
    study = StudyOptions(storage=place, name="s", metrics=[METRIC])
    return OptunaSearcher(SPACE, study, sampling=Sampling(seed=1), launching=Launching(**options))


@pytest.fixture
def hold():
    """Has another process hold a database, as somebody who copies it or writes to it does."""
    processes = []

    def held(file, seconds):
        words = [sys.executable, "-c", HOLD, str(file), str(seconds)]
        processes.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
        assert processes[-1].stdout.readline() == "held\n"
        return processes[-1]

    yield held
    for process in processes:
        process.kill()
        process.wait()


def keys(directory):
    return [trial.user_attrs[KEY] for trial in read_study(directory) if KEY in trial.user_attrs]


CALLS = {
    "suggest": lambda searcher: searcher.suggest("c"),
    "result": lambda searcher: searcher.on_trial_result("b", {f"{METRIC}_best": 0.5, "epoch": 2}),
    "complete": lambda searcher: searcher.on_trial_complete("b", {f"{METRIC}_best": 0.6, "epoch": 2, "done_all": True}),
    "failure": lambda searcher: searcher.on_trial_complete("b", {"failed_reason": "x", f"{METRIC}_best": 0.0}),
    "reason": lambda searcher: searcher.set_failure_reason("001", "killed"),
    "known": lambda searcher: searcher.known(),
    "cut short": lambda searcher: searcher.cut_short("no time"),
    "patience": lambda searcher: searcher.patience_exhausted(),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_lock_is_waited_for(running, search, hold, call, caplog):
    """Each call does what it would have done, once, with a line at most for its wait."""
    hold(search / "optuna.db", 1)
    CALLS[call](running)
    assert [entry.levelno for entry in caplog.records if "Traceback" in entry.getMessage()] == []
    assert len(keys(search)) == len(set(keys(search))) >= 2
    waited = [
        entry for entry in caplog.records if "database is locked; it is tried again for 5 minutes" in entry.message
    ]
    assert len(waited) == 1
    if call == "result":
        assert running.study.trials[1].intermediate_values == {1: 0.4, 2: 0.5}


@pytest.mark.parametrize("call", ["result", "complete", "known"])
def test_a_lock_that_stays_stops_the_search(running, search, hold, call, monkeypatch):
    """In order, with one line, and nothing is written twice or half: the search can be resumed."""
    monkeypatch.setattr(study_file, "PATIENCE_S", 0.3)
    holder = hold(search / "optuna.db", 60)
    with pytest.raises(SearchStopped, match=r"optuna.db: database is locked, for 0 minutes now; end the process"):
        CALLS[call](running)
    holder.kill()
    holder.wait()
    again = opened(search)
    assert [trial.state for trial in again.known()] == ["interrupted", "interrupted"]


def test_a_signal_ends_the_wait(running, search, hold):
    """Ctrl-C is not held up by somebody else's lock."""
    hold(search / "optuna.db", 60)
    with stopped_by_signals():
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        before = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
        try:
            with pytest.raises(SearchStopped, match="SIGINT"):
                running.on_trial_result("b", {f"{METRIC}_best": 0.5, "epoch": 2})
        finally:
            signal.signal(signal.SIGALRM, before)
            signal_handled()


def test_opening_waits_too(search, hold, monkeypatch):
    """A study that is locked is not taken for a damaged one; after minutes it is refused in one line."""
    hold(search / "optuna.db", 1)
    assert len(opened(search).known()) == 2
    assert not list(search.glob("*.damaged*"))
    monkeypatch.setattr(study_file, "PATIENCE_S", 0.5)
    hold(search / "optuna.db", 60)
    with pytest.raises(SettingError, match="database is locked, for 0 minutes now; end the process"):
        mend(search / "optuna.db", "s")
    assert not list(search.glob("*.damaged*"))


def test_reading_does_not_wait_for_ever(search, hold, monkeypatch):
    """A report or a warm start takes the copy, which is nearly as new."""
    monkeypatch.setattr("dcml_tune.runs.study._PATIENCE_S", 0.5)
    hold(search / "optuna.db", 60)
    assert keys(search) == ["000", "001"]


def test_a_study_whose_process_was_killed_while_it_wrote_is_read(search):
    """By the report, which opens it with a connection that cannot write; what that process had begun is rolled back."""
    file = search / "optuna.db"
    copy_of(file).unlink()
    killed_in_a_transaction(file)
    assert keys(search) == ["000", "001"]
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'unfinished'").fetchall() == []


def test_a_copy_waits_for_a_lock(search, hold):
    """SQLite's own backup would wait for ever, and hear no signal."""
    copy_of(search / "optuna.db").unlink()
    hold(search / "optuna.db", 1)
    copy_study(search / "optuna.db")
    (search / "optuna.db").unlink()
    assert keys(search) == ["000", "001"]
    assert not (search / "optuna.db.new").exists()


def empty(file):
    file.write_bytes(b"")


def truncated(file):
    file.write_bytes(file.read_bytes()[:5000])


def header_alone(file):
    file.write_bytes(file.read_bytes()[:100])


def noise(file):
    file.write_bytes(os.urandom(20_000))


def text(file):
    file.write_text("no database")


def without_tables(file):
    file.unlink()
    sqlite3.connect(file).execute("VACUUM")


def missing(file):
    file.unlink()


def another_study(file):
    file.unlink()
    optuna.create_study(storage=f"sqlite:///{file}", study_name="another")


def journal(file):
    noise(file)
    file.with_name("optuna.db-journal").write_bytes(b"of another file")


DAMAGED = {
    "empty": (empty, "is empty"),
    "truncated": (truncated, "is damaged"),
    "header alone": (header_alone, "is damaged"),
    "noise": (noise, "is damaged"),
    "text": (text, "is damaged"),
    "with a journal": (journal, "is damaged"),
    "no tables": (without_tables, "cannot be read (no such table"),
    "a table is missing": (execute("DROP TABLE trials"), "cannot be read (no such table"),
    "a column is missing": (execute("ALTER TABLE trials RENAME COLUMN state TO x"), "cannot be read (no such column"),
    "other tables": (execute("DROP TABLE studies", "CREATE TABLE studies (x)"), "cannot be read (no such column"),
    "nonsense inside": (execute("UPDATE trial_params SET distribution_json = '{'"), "cannot be read ("),
    "another study": (another_study, "holds no study called s"),
    "a directory": (directory, "is a directory"),
    "a FIFO": (fifo, "is not a regular file"),
    "a dangling link": (dangling, "is a link to a file that is missing"),
    "missing": (missing, "is missing"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_is_no_study_is_replaced_by_its_copy_or_refused(search, case, caplog):
    """With a line; what was there is kept. Without a copy that is whole it is refused in one line, and left as it is."""
    file, (damage, expected) = search / "optuna.db", DAMAGED[case]
    damage(file)
    hidden = copy_of(file).rename(search / "hidden")
    with pytest.raises(SettingError) as refused:
        mend(file, "s")
    assert f"{file}: the Optuna study {expected}" in str(refused.value)
    assert "has no copy" in str(refused.value)
    shutil.copy(hidden, copy_of(file))
    with caplog.at_level(logging.WARNING):
        mend(file, "s")
    assert f"{file}: the Optuna study {expected}" in caplog.text
    assert "its copy takes its place" in caplog.text
    assert file.read_bytes() == hidden.read_bytes()
    assert len(list(search.glob("optuna.db.damaged*"))) == (case != "missing")
    assert not (search / "optuna.db-journal").exists()


def test_every_damaged_study_is_kept(search):
    """A second one does not take the place of the first; the searcher knows its trials from the copy."""
    for damage in (empty, directory, noise):
        damage(search / "optuna.db")
        assert [trial.state for trial in opened(search).known()] == ["interrupted", "interrupted"]
    assert sorted(path.name for path in search.glob("*.damaged*")) == [
        "optuna.db.damaged",
        "optuna.db.damaged-2",
        "optuna.db.damaged-3",
    ]


@pytest.mark.parametrize("case", ["empty", "another study", "a directory"])
def test_a_copy_that_is_damaged_too_is_no_copy(search, case):
    """Both are named."""
    damage, expected = DAMAGED[case]
    empty(search / "optuna.db")
    damage(copy_of(search / "optuna.db"))
    with pytest.raises(SettingError) as refused:
        mend(search / "optuna.db", "s")
    assert f"the Optuna study is empty and its copy optuna.db.copy {expected}" in str(refused.value)


@pytest.mark.parametrize("version", ["v99.0.0", "v0.9.0.a"])
def test_a_study_of_another_version_of_optuna_is_refused(search, version):
    """It is whole: its copy does not take its place."""
    execute(f"UPDATE alembic_version SET version_num = '{version}'")(search / "optuna.db")
    with pytest.raises(SettingError, match="was written by another version of Optuna") as refused:
        opened(search)
    assert "\n" not in str(refused.value)
    assert not list(search.glob("*.damaged"))


def test_a_study_that_may_not_be_read_is_refused(search):
    """Its permissions are named, and nothing is put in its place."""
    (search / "optuna.db").chmod(0)
    code = "import os, sys; from pathlib import Path; from dcml_tune.runs import study_file\n"
    code += "import dcml_tune.utils.files, optuna\n"
    code += "os.getuid() or os.setuid(65534)\ntry: print(study_file.mend(Path(sys.argv[1]), 's'))\n"
    code += "except Exception as error: print(type(error).__name__, error)"
    for parent in itertools.takewhile(lambda each: each != Path(tempfile.gettempdir()), [search, *search.parents]):
        parent.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", code, str(search / "optuna.db")], capture_output=True, text=True, check=False
    )
    assert done.stdout == (
        f"SettingError {search / 'optuna.db'}: Permission denied; make it readable and writable for this user\n"
    ), done.stderr


def test_a_search_without_trials_needs_no_study(tmp_path):
    """It was interrupted before its first one."""
    mend(tmp_path / "optuna.db", "s")
    (tmp_path / "trials").mkdir()
    mend(tmp_path / "optuna.db", "s")


def test_all_that_optuna_calls_is_patient():
    """A release of Optuna that calls its storage by other names is noticed here."""
    import ast
    import inspect

    from optuna.storages import BaseStorage, RDBStorage, _cached_storage

    tree = ast.walk(ast.parse(inspect.getsource(_cached_storage)))
    called = {
        each.func.attr
        for each in tree
        if isinstance(each, ast.Call)
        and isinstance(each.func, ast.Attribute)
        and "_backend" in ast.dump(each.func.value)
    }
    public = {name for name in vars(BaseStorage) if not name.startswith("_")} - {
        "remove_session",
        "check_trial_is_updatable",
    }
    beats = {
        name for name in called | public if "heartbeat" in name or "stale" in name or "failed_trial_callback" in name
    }
    missing = {
        name
        for name in ((called | public) & vars(RDBStorage).keys()) - beats
        if getattr(PatientStorage, name) is getattr(RDBStorage, name)
    }
    assert not missing
