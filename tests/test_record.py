import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
from searches import SMALLEST

from dcml_tune.config.errors import SettingError
from dcml_tune.runs import record as record_module
from dcml_tune.runs.record import Record, SearchRunningError, all_records, refuse_existing
from dcml_tune.search.__main__ import main
from dcml_tune.utils.files import write_checksummed
from dcml_tune.utils.locks import SharedLock


def test_a_record_is_made_once_and_found_again(tmp_path):
    """With what was asked for and how far it is; a name that is taken is refused with the way to go on."""
    record = Record.create(tmp_path / "s", SMALLEST)
    record.begin(planned=3)
    record.update(ended=1, best=0.5)
    again = Record.open(tmp_path / "s")
    assert (again.asked["flags"], again.state.ended, again.state.processes) == (SMALLEST["flags"], 1, 1)
    assert (again.state.status, again.name) == ("running", "s")
    with pytest.raises(SettingError, match=r"--name s: .* go on with it by --resume s, or choose another name"):
        Record.create(tmp_path / "s", SMALLEST)


def test_one_process_runs_a_search(tmp_path):
    """Another is told who does; when that process is gone, however it ended, the search is free."""
    record = Record.create(tmp_path / "s", SMALLEST)
    record.begin()
    script = (
        "import sys, pathlib; from dcml_tune.runs.record import Record; Record.open(pathlib.Path(sys.argv[1])).hold()"
    )
    words = [sys.executable, "-c", script, str(tmp_path / "s")]
    refused = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "search s: process" in refused.stderr
    assert record.state.owner in refused.stderr
    assert Record.open(tmp_path / "s").is_running()
    record.release()
    assert subprocess.run(words, check=False).returncode == 0
    assert not Record.open(tmp_path / "s").is_running()


@pytest.mark.parametrize("left", [["lock"], ["lock", ".search.json.123"], ["lock", "lock.lease"]])
def test_a_process_that_was_killed_before_it_wrote_a_record_does_not_take_the_name(tmp_path, left, monkeypatch):
    """A directory that holds anything else does, and so does one whose lock another process holds."""
    monkeypatch.setattr(record_module, "SharedLock", partial(SharedLock, lease_s=2, heartbeat_s=0.5))
    directory = tmp_path / "s"
    directory.mkdir()
    for name in left:
        (directory / name).touch()
    refuse_existing(directory)
    record = Record.create(directory, SMALLEST)
    with pytest.raises(SettingError, match="exists; go on with it"):
        refuse_existing(directory)
    (directory / "search.json").unlink()  # so it looks to a process that begins the same search now
    with pytest.raises(SearchRunningError, match=r"search s: process \d+ on .* runs it"):
        Record.create(directory, SMALLEST)
    record.release()
    (directory / "mine.txt").touch()
    with pytest.raises(SettingError, match="exists; choose another name"):
        refuse_existing(directory)


def test_damage_is_named_and_the_others_are_listed(tmp_path):
    """A torn state alone is no damage: it only informs."""
    for name in ("one", "two", "three"):
        Record.create(tmp_path / name, SMALLEST).begin()
    (tmp_path / "one" / "search.json").write_text("{")
    (tmp_path / "two" / "state.json").write_text("{")
    records, damaged = all_records(tmp_path)
    assert {record.name: record.state.status for record in records} == {"two": "interrupted", "three": "running"}
    (line,) = damaged
    assert str(tmp_path / "one" / "search.json") in line
    with pytest.raises(SettingError, match=r"--resume four: .* holds no search"):
        Record.open(tmp_path / "four")


DEEP = "[" * 100_000


def without(*names):
    """What was asked for, without something of it."""
    return {name: value for name, value in SMALLEST.items() if name not in names}


def changed(part, **values):
    """What was asked for, with other values in one part of it."""
    return {**SMALLEST, part: {**SMALLEST[part], **values}}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (without("space"), "space is missing"),
        (without("settings"), "settings is missing"),
        (without("flags"), "flags is missing"),
        (changed("flags", num_samples="3"), "flags.num_samples: '3'"),
        (changed("flags", num_samples=0), "flags.num_samples: 0"),
        (changed("flags", final_seeds=2.5), "flags.final_seeds: 2.5"),
        (changed("flags", tracking_uri=5), "flags.tracking_uri: 5"),
        (changed("settings", dataset=1), "settings.dataset: 1"),
        (changed("settings", dataset_dir=["a"]), "settings.dataset_dir"),
        (changed("space", domains=[]), "space.domains"),
        ({**SMALLEST, "metrics": []}, "metrics"),
        ({**SMALLEST, "data": None}, "data: None"),
    ],
)
def test_a_record_with_a_right_checksum_and_wrong_content_is_one_line(tmp_path, asked, said, capsys):
    """It neither breaks the list of searches nor hides the others in it."""
    Record.create(tmp_path / "good", SMALLEST).release()
    (tmp_path / "bad").mkdir()
    write_checksummed(tmp_path / "bad" / "search.json", {"format": 1, **asked})
    with pytest.raises(SettingError, match=r"--resume bad: .*search.json is not a valid record") as refused:
        Record.open(tmp_path / "bad")
    assert said in str(refused.value)
    assert main(["--resume", "--output-dir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if said in line]
    assert [line for line in lines if line.startswith("good: ")]


@pytest.mark.parametrize("text", [DEEP, "", '{"format": 1}', "\0", '{"seal": NaN}'])
def test_what_is_no_record_is_one_line(tmp_path, text):
    """Whatever it is."""
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "search.json").write_text(text)
    with pytest.raises(SettingError, match=r"--resume bad: .*cannot be read"):
        Record.open(tmp_path / "bad")


@pytest.mark.parametrize("change", [{"changed": 1e300}, {"ended": "3"}, {"status": "lost"}, {"elapsed_s": -1.0}])
def test_a_state_that_cannot_be_only_informs_no_more(tmp_path, change, capsys):
    """The study and the trials say what is to be done; the list of searches goes on."""
    Record.create(tmp_path / "s", SMALLEST).release()
    write_checksummed(tmp_path / "s" / "state.json", change)
    assert Record.open(tmp_path / "s").state.status == "interrupted"
    assert main(["--resume", "--output-dir", str(tmp_path)]) == 0
    assert "s: interrupted, 0 of 0 trials ended" in capsys.readouterr().out


def test_names_and_reasons_cannot_steer_the_terminal(tmp_path, capsys):
    """They are shown escaped."""
    record = Record.create(tmp_path / "s\x1b[31m", SMALLEST)
    record.update(status="partial", reason="\x1b]0;title\x07\u202e")
    record.release()
    assert main(["--resume", "--output-dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert r"s\x1b[31m: partial (\x1b]0;title\x07\u202e)" in shown
    assert "\x1b" not in shown


def test_progress_is_recorded_at_each_end_and_else_once_a_second(monkeypatch):
    """Each record is synchronised to the disk, and 800 trials report 200 times a second."""
    from dcml_tune.search import stage

    clock, written = [100.0], []
    monkeypatch.setattr(stage.time, "monotonic", lambda: clock[0])

    def update(**changes):
        written.append(changes["ended"])
        record.state.ended = changes["ended"]

    record = SimpleNamespace(state=SimpleNamespace(elapsed_s=0.0, ended=0), update=update)
    runner = stage.StageRunner(SimpleNamespace(planned=8), record, None, {}, None)
    progress = SimpleNamespace(ended=0, best=0.5, untrained=None)
    for seconds, ended in ((0.0, 0), (0.5, 0), (0.9, 1), (1.0, 1), (1.8, 1), (1.9, 1), (2.0, 2), (2.0, 3)):
        clock[0], progress.ended = 100.0 + seconds, ended
        runner.record_progress(progress)
    assert written == [0, 1, 1, 2, 3]
