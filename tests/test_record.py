import subprocess
import sys

import pytest

from dcml_tune.config import SettingError
from dcml_tune.record import Record, all_records


def test_a_record_is_made_once_and_found_again(tmp_path):
    """With what was asked for and how far it is; a name that is taken is refused with the way to go on."""
    record = Record.create(tmp_path / "s", {"flags": {"num_samples": 3}})
    record.begin(planned=3)
    record.update(ended=1, best=0.5)
    again = Record.open(tmp_path / "s")
    assert (again.asked["flags"], again.state.ended, again.state.processes) == ({"num_samples": 3}, 1, 1)
    assert (again.state.status, again.name) == ("running", "s")
    with pytest.raises(SettingError, match=r"--name s: .* go on with it by --resume s, or choose another name"):
        Record.create(tmp_path / "s", {})


def test_one_process_runs_a_search(tmp_path):
    """Another is told who does; when that process is gone, however it ended, the search is free."""
    record = Record.create(tmp_path / "s", {})
    record.begin()
    script = "import sys, pathlib; from dcml_tune.record import Record; Record.open(pathlib.Path(sys.argv[1])).hold()"
    words = [sys.executable, "-c", script, str(tmp_path / "s")]
    refused = subprocess.run(words, capture_output=True, text=True, check=False)
    assert "search s: process" in refused.stderr
    assert record.state.owner in refused.stderr
    assert Record.open(tmp_path / "s").is_running()
    record.release()
    assert subprocess.run(words, check=False).returncode == 0
    assert not Record.open(tmp_path / "s").is_running()


def test_damage_is_named_and_the_others_are_listed(tmp_path):
    """A torn state alone is no damage: it only informs."""
    for name in ("one", "two", "three"):
        Record.create(tmp_path / name, {}).begin()
    (tmp_path / "one" / "search.json").write_text("{")
    (tmp_path / "two" / "state.json").write_text("{")
    records, damaged = all_records(tmp_path)
    assert {record.name: record.state.status for record in records} == {"two": "interrupted", "three": "running"}
    (line,) = damaged
    assert str(tmp_path / "one" / "search.json") in line
    with pytest.raises(SettingError, match=r"--resume four: .* holds no search"):
        Record.open(tmp_path / "four")
