"""Nobody reads what a search says any more: it goes on, and its exit code is what it would have been."""

import os
import subprocess
import sys
import time

from conftest import HERE
from scene import SEARCH, SETTINGS


def test_a_terminal_that_is_closed(cheap):
    """In the middle of the live table: the shell's hang-up ends neither the search nor Ray's processes."""
    cheap.environment["DCML_TEST_PAUSE"] = "1"
    words = ["folder", "--dataset-dir", cheap.images, "--name", "s", "--num-samples", 3, "--scheduler", "none"]
    words = [sys.executable, HERE / "faulty_search.py", cheap.directory, *words, *SEARCH, "--no-share", *SETTINGS]
    words = [*map(str, words), "--output-dir", str(cheap.output)]
    status = cheap.directory / "status"
    # As a shell does that outlives its terminal: what it has started is in its session, and hears the hang-up.
    shell = "import subprocess, signal; signal.signal(signal.SIGHUP, lambda *_: None)\n"
    shell += f"done = subprocess.run({words!r}).returncode\nopen({str(status)!r}, 'w').write(str(done))"
    pid, terminal = os.forkpty()
    if not pid:
        os.chdir(cheap.directory)
        os.execve(sys.executable, [sys.executable, "-c", shell], cheap.environment)
    seen = b""
    while b"epochs" not in seen or not (cheap.directory / "trained.txt").exists():
        try:
            seen += os.read(terminal, 65536)
        except OSError:  # nobody has the terminal any more
            raise AssertionError(f"the search has ended: {seen.decode()[-1000:]}") from None
    end = time.monotonic() + 60
    while len(cheap.trained()) < 3 and time.monotonic() < end:
        os.read(terminal, 65536)
    os.close(terminal)
    os.waitpid(pid, 0)
    assert status.read_text() == "0"
    cheap.assert_sound(3)
    assert len(cheap.trained()) == len(set(cheap.trained())) == 12


def test_a_reader_that_goes_away(cheap):
    """`| head -1`."""
    process = cheap.start("--num-samples", 2, "--scheduler", "none", output=subprocess.PIPE)
    assert process.stdout.readline()
    process.stdout.close()
    assert process.wait(120) == 0
    cheap.assert_sound(2)


def test_a_full_disk_below_the_log(cheap):
    """The log alone is lost."""
    with open("/dev/full", "w") as full:
        process = cheap.start("--num-samples", 2, "--scheduler", "none", output=full)
        assert process.wait(120) == 0
    cheap.assert_sound(2)
