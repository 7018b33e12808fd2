import subprocess
import sys

from trainables.trial_lock import take

OWNER = """
import pathlib, sys, time
from trainables.trial_lock import take
owner = take(pathlib.Path(sys.argv[1]))
print("taken", flush=True)
time.sleep(1000)
"""


def start(directory):
    process = subprocess.Popen([sys.executable, "-c", OWNER, str(directory)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "taken\n"
    return process


def test_the_next_process_replaces_one_that_is_busy(tmp_path):
    """The old one ends by itself, in the middle of what it does; only then does the new one have the directory."""
    old = start(tmp_path)
    new = take(tmp_path)
    assert old.wait(5) == 75
    new.release()


def test_a_killed_process_leaves_the_directory_free(tmp_path):
    """However it ended."""
    old = start(tmp_path)
    old.kill()
    old.wait()
    new = take(tmp_path)
    new.release()
    take(tmp_path).release()
