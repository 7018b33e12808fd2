"""Output that cannot be written is dropped, and errors are one line: each command of these tests is a real process."""

import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Prints in each way that a command does, more than a pipe holds, and says in a file that it came to its end.
SCRIPT = """
import logging, sys
from pathlib import Path
from dcml_tune.cli.parser import run_command

def main(argv):
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    logging.basicConfig(format="%(message)s")
    table = Table("a", "b")
    table.add_row("±", "ü")
    if sys.stdout.isatty():
        with Live(table, refresh_per_second=20) as live:
            Path(argv[0] + ".begun").touch()
            while not Path(argv[0] + ".end").exists():
                live.update(table, refresh=True)
    print("first", flush=True)
    for number in range(3000):
        print("x" * 50)
        print(number, file=sys.stderr)
    logging.getLogger("x").warning("a line of the log")
    Console().print(table)
    print("\\u00b1 \\udcff", flush=True)
    sys.stdout.buffer.write(b"bytes")
    with open(argv[0], "w") as file:
        print("end", file=file)
    print("not flushed")
    return 5

run_command(main)
"""


def command(tmp_path, **options):
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path / "end")], **options)


def ends(process, tmp_path):
    assert process.wait(30) == 5
    assert (tmp_path / "end").read_text() == "end\n"


def full():
    return {"stdout": open("/dev/full", "w"), "stderr": open("/dev/full", "w")}


def closed(*descriptors):
    return {"preexec_fn": lambda: [os.close(each) for each in descriptors], "close_fds": True}


CASES = {
    "a full disk": full,
    "stdout closed": lambda: closed(1),
    "stderr closed": lambda: closed(2),
    "stdin and both closed": lambda: closed(0, 1, 2),
    "read only": lambda: {"stdout": open(os.devnull), "stderr": open(os.devnull)},  # noqa: SIM115
    "ASCII alone": lambda: {
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
        "env": {**os.environ, "PYTHONIOENCODING": "ascii"},
    },
    "no buffer": lambda: {**full(), "env": {**os.environ, "PYTHONUNBUFFERED": "1"}},
}


@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_written_is_dropped(tmp_path, case):
    """The command comes to its end, with its own exit code, and writes into no file of its own by mistake."""
    ends(command(tmp_path, **CASES[case]()), tmp_path)


def test_a_reader_that_goes_away(tmp_path):
    """As `| head -1` does."""
    process = command(tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"first\n"
    process.stdout.close()
    process.stderr.close()
    ends(process, tmp_path)


def test_a_pipe_that_does_not_block_gets_all(tmp_path):
    """Some parents leave theirs in that mode: what a slow reader has no room for yet is waited for."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    process = command(tmp_path, stdout=write, stderr=subprocess.DEVNULL)
    os.close(write)
    time.sleep(1)
    said = b""
    while some := os.read(read, 4096):
        said += some
    os.close(read)
    ends(process, tmp_path)
    assert said.count(b"x" * 50) == 3000
    assert said.endswith(b"not flushed\n")


def test_a_terminal_that_goes_away(tmp_path):
    """In the middle of a live table."""
    ours, theirs = pty.openpty()
    process = command(tmp_path, stdout=theirs, stderr=theirs)
    os.close(theirs)
    begun = tmp_path / "end.begun"
    while not begun.exists():
        assert process.poll() is None
        os.read(ours, 4096) if _readable(ours) else time.sleep(0.02)
    os.close(ours)
    time.sleep(0.3)
    (tmp_path / "end.end").touch()
    ends(process, tmp_path)


def _readable(descriptor):
    import select

    return bool(select.select([descriptor], [], [], 0)[0])


@pytest.mark.parametrize("words", [["search", "--help"], ["data", "nothing"]])
def test_commands_do_so(tmp_path, words):
    """The exit code is that of the same command with a reader."""
    whole = [sys.executable, "-m", f"dcml_tune.{words[0]}", *words[1:]]
    expected = subprocess.run(whole, capture_output=True, cwd=tmp_path, check=False).returncode
    assert subprocess.run(whole, **full(), cwd=tmp_path, check=False).returncode == expected


ERRORS = {
    "a bug": ("raise ValueError('first\\nsecond')", "ValueError: first"),
    "no text": ("raise AssertionError", "AssertionError"),
    "a cause": (
        "try:\n        1 / 0\n    except ZeroDivisionError as error:\n        raise RuntimeError('no way') from error",
        "RuntimeError: no way (because of ZeroDivisionError: division by zero)",
    ),
    "of another process": (
        "raise RuntimeError('ray::step()\\nTraceback (most recent call last):\\n  File x\\nKeyError: 3\\n')",
        "RuntimeError: KeyError: 3",
    ),
    "of another process, in lines": (
        "raise RuntimeError('Traceback (most recent call last):\\n  File x\\nValueError: one\\ntwo\\n')",
        "RuntimeError: ValueError: one",
    ),
    "deep": ("main(argv)", "RecursionError: maximum recursion depth exceeded"),
    "a password": (
        "raise OSError('http://ann:geheim@host does not answer')",
        "OSError: http://***@host does not answer",
    ),
}


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_that_nobody_expected_is_one_line_with_a_file(tmp_path, case):
    """Exit code 1; the traceback, without passwords, is in a file that only its user can read."""
    raising, expected = ERRORS[case]
    code = f"""
import os
from pathlib import Path
from dcml_tune.utils import tracebacks
from dcml_tune.cli.parser import run_command

def main(argv):
    tracebacks.keep_in(Path.cwd())
    {raising}

os.umask(0)
run_command(main)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    (line,) = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, "")
    found = re.fullmatch(rf"error: unexpected {re.escape(expected)}.*; its traceback is in (.*)", line)
    assert found, line
    file = Path(found[1])
    assert (file.parent, file.stat().st_mode & 0o777) == (tmp_path, 0o600)
    text = file.read_text()
    assert "Traceback (most recent call last)" in text
    assert "in main" in text
    assert "geheim" not in text + line


def test_where_tracebacks_go(tmp_path, monkeypatch):
    """Beside the search, else to the temporary directory; where neither can be written, that is said."""
    from dcml_tune.utils import tracebacks

    monkeypatch.setattr(tracebacks, "_file", None)
    monkeypatch.setattr(tracebacks, "_directory", None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    first = tracebacks.keep(ValueError("one"))
    assert first.parent == tmp_path
    assert tracebacks.keep(ValueError("two")) == first
    assert "one" in first.read_text()
    assert "two" in first.read_text()
    (tmp_path / "s").mkdir()
    tracebacks.keep_in(tmp_path / "s")
    assert tracebacks.keep(ValueError("three")).parent == tmp_path / "s"
    tracebacks.keep_in(tmp_path / "gone")
    assert tracebacks.keep(ValueError("four")).parent == tmp_path
    monkeypatch.setattr("tempfile.tempdir", "/proc/nothing")
    tracebacks.keep_in(tmp_path / "gone")
    assert tracebacks.where(ValueError("five")) == "its traceback could not be written"


def test_ctrl_c_says_one_line(tmp_path):
    """In each command, also before it has anything to end in order."""
    code = "import os, signal, time\nfrom dcml_tune.cli.parser import run_command\n"
    code += "def main(argv):\n    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(5)\nrun_command(main)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped (SIGINT)\n")
