import copy
import inspect
import os

import pytest
from ray.tune.execution import tune_controller
from ray.tune.execution.tune_controller import TuneController

from dcml_tune.runs import attempts
from dcml_tune.runs.attempts import begin_attempt, files_of, next_attempt, read_attempts, settle
from dcml_tune.utils.files import CorruptFileError
from dcml_tune.utils.signals import SearchStopped
from trainables.run import Run, pack, pack_list, run_of, unpack
from trainables.starts import Starts, numbered_starts


def start(directory):
    """Start a trial as driver and process do."""
    return begin_attempt(directory, next_attempt(directory))


def write(directory, **files):
    for name, content in files.items():
        path = directory / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def found(directory):
    """Content of the files of a trial, by name."""
    entries = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(directory)): path.read_text()
        for path in entries
        if path.name not in ("attempt.json", "lock")
    }


FILES = {"state": "1", "best__model.json": "{}"}
THERE = {"state": "1", "best/model.json": "{}"}


@pytest.fixture
def trial(tmp_path):
    return tmp_path / "trial"


def test_each_start_has_what_the_one_before_has_left(trial):
    """Its number is higher; what is read of a trial is what its newest process has."""
    for number in range(1, 4):
        own = start(trial)
        assert (own, files_of(trial)) == (trial / f"attempt-{number:05d}", own)
        assert found(own) == (THERE if number > 1 else {})
        write(own, **FILES)
    assert [path.name for path in trial.iterdir() if path.is_dir()] == ["attempt-00003"]
    settle(trial)
    settle(trial)
    assert (found(trial), files_of(trial)) == (THERE, trial)
    assert (read_attempts(trial).number, read_attempts(trial).settled) == (3, 3)
    assert found(start(trial)) == THERE
    assert found(trial) == {f"attempt-00004/{name}": content for name, content in THERE.items()}


def test_a_trial_of_an_earlier_version_goes_on(trial):
    """Its files are in the trial's directory. Those that are not of an attempt stay there."""
    write(trial, **FILES, lock="", owner="process 1", **{"error.txt": "", ".state.1": "torn"})
    assert files_of(trial) == trial
    own = start(trial)
    assert found(own) == THERE
    assert sorted(path.name for path in trial.iterdir()) == [
        ".state.1", "attempt-00001", "attempt.json", "error.txt", "lock", "owner",
    ]  # fmt: skip


@pytest.mark.parametrize("when", ["before the next start", "after it", "after its end"])
def test_what_an_older_process_writes_is_not_read(trial, when):
    """Whenever it goes on; it makes its directory again if it is gone."""
    old = start(trial)
    write(old, **FILES)
    if when != "before the next start":
        new = start(trial)
        write(new, state="2")
    if when == "after its end":
        settle(trial)
    write(old, state="old", other="old")
    if when == "before the next start":
        assert found(start(trial)) == {**THERE, "state": "old", "other": "old"}, "it was the newest one"
        return
    expected = {**THERE, "state": "2"}
    assert {name: text for name, text in found(files_of(trial)).items() if "attempt" not in name} == expected
    assert found(start(trial)) == expected
    settle(trial)
    assert found(trial) == expected


def test_a_process_that_changes_its_files_while_they_are_taken_over(trial, monkeypatch):
    """They are linked again from the beginning, so that they belong together."""
    old = start(trial)
    write(old, a="1", b="1")
    link, calls = attempts.link_or_copy, []

    def changes(source, target):
        calls.append(source)
        if len(calls) == 2:
            (old / "a").unlink()
            (old / "b").unlink()
            write(old, c="2")
        link(source, target)

    monkeypatch.setattr(attempts, "link_or_copy", changes)
    monkeypatch.setattr(attempts, "_LOOK_S", 0.0)
    assert found(start(trial)) == {"c": "2"}
    assert not list(trial.glob(".attempt-*"))


def test_a_driver_that_is_killed_while_it_settles(trial, monkeypatch):
    """The next one has all files, whether it settles again or starts the trial again."""
    for ends in (settle, start):
        place = trial.with_name(ends.__name__)
        write(start(place), a="1", b="1", c="1")
        replace, calls = os.replace, []

        def killed(source, target, replace=replace, calls=calls):
            calls.append(source)
            if len(calls) == 3:
                raise KeyboardInterrupt
            replace(source, target)

        with monkeypatch.context() as there:
            there.setattr(attempts.os, "replace", killed)
            with pytest.raises(KeyboardInterrupt):
                settle(place)
        ends(place)
        assert found(files_of(place)) == {"a": "1", "b": "1", "c": "1"}


def test_a_process_that_is_killed_while_it_takes_over(trial, monkeypatch):
    """The next one takes over from the one before it, and removes what it left."""
    write(start(trial), **FILES)
    with monkeypatch.context() as there:
        there.setattr(attempts.os, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            start(trial)
    assert files_of(trial).name == "attempt-00001"
    own = start(trial)
    assert (own.name, found(own)) == ("attempt-00003", THERE)


def test_a_damaged_number_is_found_again(trial):
    """It stays higher than that of each process that has files."""
    start(trial)
    start(trial)
    (trial / "attempt.json").write_text("{")
    with pytest.raises(CorruptFileError):
        read_attempts(trial)
    assert files_of(trial).name == "attempt-00002"
    assert next_attempt(trial) == 3


def test_nothing_is_settled_where_nothing_was_started(trial):
    """A trial that fails before its process starts has no directory."""
    settle(trial)
    assert not trial.exists()


class Tuned:
    """What the function of Tune that makes the arguments of a process is given."""

    last_result = None

    def __init__(self, config):
        self.config = config


@pytest.fixture
def arguments_of(monkeypatch):
    """Tune's function, which needs a running cluster, is replaced; its name and its use are Tune's."""
    assert "_get_trainable_kwargs(trial=trial)" in inspect.getsource(TuneController._schedule_trial_actor)
    monkeypatch.setattr(
        tune_controller, "_get_trainable_kwargs", lambda trial: {"config": copy.deepcopy(trial.config), "more": 1}
    )
    return lambda trial: tune_controller._get_trainable_kwargs(trial=trial)


@pytest.mark.parametrize("packed", ["one", "list"])
def test_each_process_that_tune_starts_has_a_number(trial, arguments_of, packed):
    """The driver writes it before, if it still runs the search; the settings of the trial stay as they are."""
    config = pack({"dataset": "cub"}, Run(key="000", directory=str(trial)))
    if packed == "list":
        config = {"whole": pack_list([config])["whole"]["grid_search"][0]}
    tuned, checks = Tuned(config), []
    with numbered_starts(Starts(check=lambda: checks.append(1))):
        made = [arguments_of(tuned)["config"] for _ in range(2)]
    assert [run_of(each).attempt for each in made] == [1, 2]
    assert [unpack(each)[0] for each in made] == [{"dataset": "cub"}] * 2
    assert (read_attempts(trial).number, len(checks), run_of(tuned.config).attempt) == (2, 2, 0)
    assert run_of(arguments_of(tuned)["config"]).attempt == 0

    def lost():
        raise SearchStopped("another process runs it")

    with numbered_starts(Starts(check=lost)), pytest.raises(SearchStopped):
        arguments_of(tuned)
    assert read_attempts(trial).number == 2


def test_a_number_that_cannot_be_written_stops_the_search(tmp_path, arguments_of):
    """In good order: it can be resumed when there is room."""
    (tmp_path / "trial").touch()
    config = pack({}, Run(directory=str(tmp_path / "trial")))
    with numbered_starts(Starts()), pytest.raises(SearchStopped, match="trial cannot be written"):
        arguments_of(Tuned(config))
