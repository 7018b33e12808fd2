"""The study on a PostgreSQL server: a real one, which is stopped, refuses logins, and is shared."""

import logging
import pickle
import subprocess
import sys
import threading
import time

import optuna
import pytest
from searches import SMALLEST

from dcml_tune.config.errors import SettingError
from dcml_tune.runs import study_file
from dcml_tune.runs.record import Record
from dcml_tune.runs.study import KEY, read_study
from dcml_tune.runs.study_place import new_place, place_of, recorded_place
from dcml_tune.runs.study_server import checked_address, without_password
from dcml_tune.search.flags import read_command_line
from dcml_tune.search.plan import given_plan
from dcml_tune.search.resume import resumed_plan
from dcml_tune.search.start_or_resume import new_or_resumed
from dcml_tune.utils.redaction import redact
from dcml_tune.utils.signals import SearchStopped
from search_spaces.space import Choice, Float, SearchSpace
from trainables import study_values
from trainables.searcher import OptunaSearcher, Sampling, StudyOptions
from trainables.study_file import PatientStorage

SPACE = SearchSpace(name="emoji", published={"dataset": "emoji"}, domains={"masking_lambda": Float(1e-3, 1.0)})
METRIC = "val/recall_at_1"


@pytest.fixture(scope="module")
def tables(postgresql):
    """The address of a database with Optuna's tables, which take a second to create."""
    address = postgresql.database()
    PatientStorage(address)
    return address


@pytest.fixture
def database(tables, request, postgresql):
    """The same; the server runs again after a test that stopped it."""
    yield tables
    if postgresql.process is None:
        postgresql.start()


def opened(address, name, space=SPACE):
    options = StudyOptions(storage=address, name=name, metrics=[METRIC])
    return OptunaSearcher(space, options, sampling=Sampling(seed=1))


@pytest.fixture
def running(database, request, monkeypatch):
    """A searcher with two trials that run; it writes each value at once."""
    monkeypatch.setattr(study_values, "TOGETHER_S", 0.0)
    searcher = opened(database, request.node.name)
    for name in "ab":
        searcher.suggest(name)
        searcher.on_trial_result(name, {f"{METRIC}_best": 0.4, "epoch": 1})
    return searcher


@pytest.mark.parametrize(
    ("address", "rule"),
    [
        ("sqlite:///studies.db", "leave the flag out"),
        ("mysql://ann:geheim@host/db", "must be postgresql://"),
        ("postgresql://ann:geheim@host", "must be postgresql://"),
        ("postgresql:///db", "must be postgresql://"),
        ("mysql://ann@host/db?password=geheim", "must be postgresql://"),
        ("postgresql://ann:geheim@host:port/db", "must be postgresql://"),
        ("http://ann:geheim@host", "must be postgresql://"),
        ("studies", "must be postgresql://"),
        ("postgresql+foo://ann:geheim@host/db", "knows no driver postgresql+foo"),
        ("postgresql+pg8000://ann:geheim@host/db", "pip install pg8000"),
    ],
)
def test_an_address_that_cannot_work_is_refused_first_of_all(address, rule):
    """By the parser, in one line without the password."""
    with pytest.raises(SettingError) as refused:
        read_command_line(["emoji", "--study-uri", address])
    assert rule in str(refused.value)
    assert "geheim" not in str(refused.value)
    assert redact(str(refused.value)) == str(refused.value), "the rule is removed where the message is printed"


def test_an_address_is_recorded_without_its_password():
    """Nor other secrets; the rest is kept, with its escapes."""
    address = "postgresql://a%40n:ge%2Fheim@db:5432/studies?sslmode=require&password=x"
    assert without_password(address) == "postgresql://a%40n@db:5432/studies?sslmode=require"
    assert without_password(checked_address(address)) == without_password(address)
    assert checked_address("postgresql://ann@/db?host=/var/run") == "postgresql://ann@/db?host=%2Fvar%2Frun"


def test_the_searcher_writes_to_the_server_and_goes_on_there(database, running, request):
    """Values, ends and interrupted trials are there for the next process."""
    running.on_trial_complete("a", {f"{METRIC}_best": 0.6, "epoch": 2, "done_all": True})
    again = opened(database, request.node.name)
    assert [(trial.key, trial.state) for trial in again.known()] == [("000", "done"), ("001", "interrupted")]
    assert again.known()[0].curve == {1: 0.4, 2: 0.6}
    assert again.suggest("c")
    assert [trial.state for trial in again.known()] == ["done", "running"]


def test_two_searches_of_one_name_do_not_meet(database, tmp_path):
    """Those of other users and output directories: each study has a name of its own, which the record holds."""
    places = [new_place(tmp_path / user / "s", database) for user in "ab"]
    assert len({place.name for place in places}) == 2
    for place in places:
        opened(database, place.name).suggest("x")
        assert len(opened(database, place.name).known()) == 1


def test_a_search_is_read_from_its_record(database, tmp_path, monkeypatch, postgresql):
    """By reports and warm starts; the password is in the environment alone."""
    place = new_place(tmp_path / "s", database)
    flags = {**SMALLEST["flags"], "study_uri": place.shown}
    Record.create(tmp_path / "s", {**SMALLEST, "flags": flags, "study": place.name}).release()
    monkeypatch.delenv("PGPASSWORD", raising=False)
    with pytest.raises(SettingError, match="give the password in PGPASSWORD") as refused:
        read_study(tmp_path / "s")
    assert "\n" not in str(refused.value)
    monkeypatch.setenv("PGPASSWORD", postgresql.PASSWORD)
    with pytest.raises(SettingError, match="is not there yet"):
        read_study(tmp_path / "s")
    opened(database, place.name).suggest("a")
    assert [trial.user_attrs[KEY] for trial in read_study(tmp_path / "s")] == ["000"]
    assert place_of(tmp_path / "s").shown == without_password(database)


def test_no_file_holds_the_password(database, running, request, postgresql):
    """Ray pickles its searcher to disk; nothing shows it."""
    assert postgresql.PASSWORD.encode() not in pickle.dumps(running)
    assert b"geheim" not in pickle.dumps(running)
    assert "geheim" not in repr(running.options)
    place = recorded_place(None, {"flags": {"study_uri": "postgresql://x@y/z"}, "study": "s"}, database)
    assert "geheim" not in repr(place) + place.shown
    assert place.address == database


WIDER = SearchSpace(
    name="emoji",
    published={"dataset": "emoji", "nb_clusters": 4},
    domains={"masking_lambda": Float(1e-3, 1.0), "nb_clusters": Choice((4, 8))},
)


def test_a_wider_space_replaces_the_study(database, running, request):
    """In one step; what an earlier attempt left is removed."""
    running.on_trial_complete("a", {f"{METRIC}_best": 0.6, "epoch": 2, "done_all": True})
    name = request.node.name
    optuna.create_study(storage=database, study_name=f"{name}.new")
    wider = opened(database, name, WIDER)
    assert [trial.config["nb_clusters"] for trial in wider.known()] == [4, 4]
    assert [trial.state for trial in wider.known()] == ["done", "interrupted"]
    assert wider.known()[0].curve == {1: 0.4, 2: 0.6}
    assert {each for each in optuna.get_all_study_names(database) if each.startswith(name)} == {name}


CALLS = {
    "suggest": lambda searcher: searcher.suggest("c"),
    "result": lambda searcher: searcher.on_trial_result("b", {f"{METRIC}_best": 0.5, "epoch": 2}),
    "complete": lambda searcher: searcher.on_trial_complete("b", {f"{METRIC}_best": 0.6, "epoch": 2, "done_all": True}),
    "failure": lambda searcher: searcher.on_trial_complete("b", {"failed_reason": "x", f"{METRIC}_best": 0.0}),
    "known": lambda searcher: searcher.known(),
    "cut short": lambda searcher: searcher.cut_short("no time"),
}


def test_a_server_that_is_away_is_waited_for(database, running, postgresql, caplog):
    """Each call does what it would have done, once, with one line for its wait."""
    for name, call in CALLS.items():
        postgresql.stop()
        back = threading.Timer(1.5, postgresql.start)
        back.start()
        with caplog.at_level(logging.WARNING):
            call(running)
        back.join()
        lines = [entry.getMessage() for entry in caplog.records]
        assert len([line for line in lines if "it is tried again for 5 minutes" in line]) == 1, (name, lines)
        assert "geheim" not in caplog.text
        caplog.clear()
    keys = [trial.key for trial in running.known()]
    assert keys == ["000", "001", "002"]
    assert running.study.trials[1].intermediate_values == {1: 0.4, 2: 0.5}  # an epoch counts once


def test_a_server_that_stays_away_stops_the_search(database, running, postgresql, monkeypatch):
    """In good order, with one line; a resume finds all."""
    monkeypatch.setattr(study_file, "PATIENCE_S", 0.3)
    postgresql.stop()
    with pytest.raises(SearchStopped, match=r"--study-uri .*, for 0 minutes now; see to the server") as stopped:
        CALLS["result"](running)
    assert "geheim" not in str(stopped.value)
    assert "\n" not in str(stopped.value)
    postgresql.start()
    again = opened(database, running.options.name)
    assert [trial.state for trial in again.known()] == ["interrupted", "interrupted"]


@pytest.mark.parametrize("call", ["_create_new_trial", "set_trial_state_values"])
def test_what_the_server_did_before_the_connection_broke_is_not_done_again(running, call, monkeypatch, caplog):
    """A trial is created once, and one that has ended has ended."""
    storage = running.study._storage._backend
    broken = []

    def breaks(method):
        def once(self, *arguments, **options):
            done = method(self, *arguments, **options)
            if not broken:
                broken.append(call)
                raise _broken()
            return done

        once.__name__ = call
        return once

    from trainables.study_file import _patient

    monkeypatch.setattr(PatientStorage, call, _patient(breaks(getattr(optuna.storages.RDBStorage, call))))
    before = len(storage.get_all_trials(running.study._study_id))
    if call == "_create_new_trial":
        assert running.suggest("c")
        assert len(storage.get_all_trials(running.study._study_id)) == before + 1
        assert [trial.state for trial in running.known()] == ["running"] * 3
    else:
        running.on_trial_complete("a", {f"{METRIC}_best": 0.6, "epoch": 2, "done_all": True})
        assert [trial.state for trial in running.known()] == ["done", "running"]
    assert broken == [call]
    assert "did not take a result" not in caplog.text  # as the searcher would log an error of the second call


def _broken():
    import psycopg
    from sqlalchemy.exc import OperationalError

    return OperationalError("COMMIT", {}, psycopg.OperationalError("server closed the connection unexpectedly"))


def test_searches_that_begin_at_once_make_the_tables_once(postgresql):
    """On a new database; none of them fails."""
    address = postgresql.database()
    code = "import sys; from trainables.study_file import open_study; print(open_study(*sys.argv[1:], ['maximize']).study_name)"
    words = [[sys.executable, "-c", code, address, f"s{n}"] for n in range(3)]
    processes = [subprocess.Popen(each, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for each in words]
    done = [process.communicate() for process in processes]
    assert [said for said, _ in done] == ["s0\n", "s1\n", "s2\n"], done
    assert len(optuna.get_all_study_names(address)) == 3


REFUSED = {
    "password": ({"login": "ann:wrong"}, "password authentication failed", "give the password in PGPASSWORD"),
    "no password": ({"login": "ann"}, "no password supplied", "give the password in PGPASSWORD"),
    "user": ({"login": "ben:x"}, "password authentication failed", "give the password in PGPASSWORD"),
    "database": ({"database": "nowhere"}, "does not exist", "correct the address, or create it"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_the_server_refuses_is_refused_at_once(postgresql, case, monkeypatch, tmp_path):
    """In one line with the remedy, not after minutes; also at a resume."""
    monkeypatch.delenv("PGPASSWORD", raising=False)
    options, said, remedy = REFUSED[case]
    place = new_place(tmp_path / "s", postgresql.address(**options))
    begin = time.monotonic()
    for check in (place.check_new, lambda: place.check(tmp_path / "s")):
        with pytest.raises(SettingError) as refused:
            check()
        assert said in str(refused.value)
        assert remedy in str(refused.value)
        assert "\n" not in str(refused.value)
        assert "minutes now" not in str(refused.value)
    assert time.monotonic() - begin < study_file.PATIENCE_S


def test_a_server_that_is_not_there_is_refused_for_a_new_search(tmp_path):
    """At once; a resume waits for it."""
    with pytest.raises(SettingError, match=r"--study-uri postgresql://\*\*\*@127.0.0.1:9/db: .*see to the server"):
        new_place(tmp_path / "s", "postgresql://ann:geheim@127.0.0.1:9/db").check_new()


def test_a_resume_waits_for_the_server(database, running, postgresql, tmp_path):
    """A study that is there is found; one that is missing although trials ran is refused."""
    (tmp_path / "trials" / "000").mkdir(parents=True)
    asked = {"flags": {"study_uri": "postgresql://x@y/z"}, "study": running.options.name}
    postgresql.stop()
    back = threading.Timer(1.0, postgresql.start)
    back.start()
    recorded_place(tmp_path, asked, database).check(tmp_path)
    back.join()
    with pytest.raises(SettingError, match="holds no study lost; restore it on the server"):
        recorded_place(tmp_path, {**asked, "study": "lost"}, database).check(tmp_path)


def test_a_user_without_rights_is_refused(postgresql, tmp_path):
    """Before anything starts: who may not create tables, and who may not write into those that are there."""
    address = postgresql.database()
    name = address.rpartition("/")[2]
    postgresql.execute("CREATE ROLE reader LOGIN PASSWORD 'x'")
    theirs = postgresql.address(name, login="reader:x")
    for _ in range(2):
        with pytest.raises(SettingError, match="the user may not write there"):
            new_place(tmp_path / "s", theirs).check_new()
        PatientStorage(address)
    new_place(tmp_path / "s", address).check_new()


def test_a_database_of_another_version_of_optuna_is_refused(postgresql, tmp_path):
    """It is left as it is."""
    address = postgresql.database()
    PatientStorage(address)
    postgresql.execute("UPDATE alembic_version SET version_num = 'v99.0.0'", database=address.rpartition("/")[2])
    with pytest.raises(SettingError, match="another version of Optuna") as refused:
        new_place(tmp_path / "s", address).check_new()
    assert "\n" not in str(refused.value)


def test_the_command_of_a_search_may_be_run_again(database, folder, tmp_path, monkeypatch, postgresql):
    """With the whole address, or with the password in the environment; another server is refused. No file has the password."""
    monkeypatch.delenv("PGPASSWORD", raising=False)
    words = [
        "folder", "--dataset-dir", str(folder), "--output-dir", str(tmp_path), "--start-or-resume", "s", "--train-classes", "16",
        "--arch", "test_resnet", "--weights", "none", "--sz-resize", "32", "--sz-crop", "32", "--sz-embedding", "8",
        "--batch-size", "8", "--num-samples-per-class", "2", "--nb-epochs", "4",
    ]  # fmt: skip
    command = [*words, "--study-uri", database]
    plan = given_plan(new_or_resumed(read_command_line(command)))
    record = plan.begin()
    plan.searcher().suggest("a")
    record.release()
    (tmp_path / "s" / "trials" / "000").mkdir()
    assert record.asked["study"].startswith("s-")
    assert record.asked["flags"]["study_uri"] == without_password(database)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path for path in files if b"geheim" in path.read_bytes()] == []
    assert not (tmp_path / "s" / "optuna.db").exists()

    def resumed(given):
        plan = resumed_plan(new_or_resumed(read_command_line(given)))
        plan.record.release()
        return plan.searcher().known()

    assert len(resumed(command)) == 1
    with pytest.raises(SettingError, match="give the password in PGPASSWORD") as refused:
        resumed(words)
    monkeypatch.setenv("PGPASSWORD", postgresql.PASSWORD)
    assert len(resumed(words)) == 1, "the search is free, although the error and all that it refers to are still there"
    del refused
    assert len(resumed([*words, "--study-uri", without_password(database)])) == 1
    with pytest.raises(SettingError, match=r"ann@127.0.0.1:9/db: search s began with"):
        resumed([*words, "--study-uri", "postgresql://ann:x@127.0.0.1:9/db"])
