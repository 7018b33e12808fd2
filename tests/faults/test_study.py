"""Somebody else holds the study, or a bug is met: one line, and a search that goes on or can be resumed."""

import re
import signal
import subprocess
import sys

from dcml_tune.utils.files import read_checksummed

HOLD = """
import sqlite3, sys, time
held = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
held.execute("BEGIN EXCLUSIVE")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
"""


def hold(scene, seconds):
    """Have another process hold the study."""
    words = [sys.executable, "-c", HOLD, scene.output / "s" / "optuna.db", str(seconds)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_study_that_is_locked_is_waited_for(cheap):
    """For twelve seconds: no trial is ended for it, nothing is lost, the exit code is 0."""
    cheap.environment["DCML_TEST_PAUSE"] = "1"
    process = cheap.start("--num-samples", 3, "--scheduler", "none")
    cheap.wait_for("epoch 2", process, 200)
    holder = hold(cheap, 12)
    assert process.wait(120) == 0, process.log.read_text()
    assert holder.wait(20) == 0
    said = process.log.read_text()
    assert said.count("optuna.db: database is locked; it is tried again for 5 minutes") == 1, said
    assert "Traceback" not in said
    assert "tried again from" not in said
    cheap.assert_sound(3)
    assert len(cheap.trained()) == len(set(cheap.trained())) == 12


def test_a_study_that_stays_locked_stops_the_search_in_order(cheap):
    """With one line, here and in the list of searches; once it is free, a resume loses nothing."""
    cheap.environment |= {"DCML_TEST_PAUSE": "1", "DCML_TEST_STUDY_PATIENCE": "4"}
    process = cheap.start("--num-samples", 3, "--scheduler", "none")
    cheap.wait_for("epoch 2", process, 200)
    holder = hold(cheap, 600)
    assert process.wait(90) == 3, process.log.read_text()
    said = process.log.read_text()
    assert re.search(r"\ninterrupted: \S+optuna.db: database is locked, for .* minutes now; end the process .*\n", said)
    assert "Traceback" not in said
    assert "--resume s" in said
    status, listed = cheap.search("--resume", new=False)
    assert status == 0
    assert len(re.findall("^s: interrupted .*database is locked", listed, re.MULTILINE)) == 1
    assert len(listed.splitlines()) == 2, listed
    status, said = cheap.resume()
    assert (status, len(said.splitlines())) == (2, 1), said  # still locked: refused before Ray starts
    assert "database is locked" in said
    holder.kill()
    holder.wait()
    status, said = cheap.resume()
    assert status == 0, said
    cheap.assert_sound(3)
    assert cheap.lost() == []


def test_a_bug_is_one_line_with_a_file(cheap):
    """Code 1; the traceback lies in the search's directory, its list shows one line, and it can be resumed."""
    process_environment = dict(cheap.environment)
    cheap.environment["DCML_TEST_BUG"] = "1"
    status, said = cheap.search("--num-samples", 2, "--scheduler", "none")
    assert status == 1, said
    assert "Traceback" not in said
    line = next(line for line in said.splitlines() if line.startswith("error: unexpected "))
    file = re.search(r"its traceback is in (\S+)", line)[1]
    assert file.startswith(str(cheap.output / "s" / "errors-"))
    with open(file) as opened:
        text = opened.read()
    assert "KeyError: 'a bug'" in text
    assert "has_a_bug" in text
    reason = read_checksummed(cheap.output / "s" / "state.json")["reason"]
    assert "something is wrong" in reason
    assert "\n" not in reason
    cheap.environment = process_environment
    status, said = cheap.resume()
    assert status == 0, said
    cheap.assert_sound(2)


def test_a_hang_up_without_a_closed_terminal_ends_it_in_order(cheap):
    """As SIGTERM does, with status 3."""
    cheap.faults({"trial": "001", "epoch": 1, "kind": "hang"})
    process = cheap.start("--num-samples", 2)
    cheap.wait_for_hang("001", process)
    process.send_signal(signal.SIGHUP)
    assert process.wait(60) == 3
    assert "interrupted: SIGHUP" in process.log.read_text()
    assert "RUNNING" not in {run.info.status for run in cheap.runs().values()}
