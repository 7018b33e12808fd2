"""Signals: each process of these tests gets real ones."""

import os
import signal
import subprocess
import sys
import time

import pytest

START = """
import gc, os, signal, sys, time, weakref
from dcml_tune.utils.signals import *

def send(number=signal.SIGINT):
    os.kill(os.getpid(), number)
    for _ in range(1000):
        pass

class Finalised:
    def __del__(self):
        send()

class Watched:
    pass
"""

# Each ends with "stopped SIGNAL" although the exception is first dropped, or must wait.
LOST = {
    "in __del__": "made = Finalised(); del made; time.sleep(20)",
    "in __del__, in a loop without calls": """
made = Finalised(); del made
end = time.monotonic() + 20
while time.monotonic() < end: pass
""",
    "in a finaliser of a finaliser": """
class Again:
    def __del__(self):
        made = Finalised(); del made; time.sleep(0.3)
made = Again(); del made; time.sleep(20)
""",
    "in a callback of a weak reference": """
made = Watched(); reference = weakref.ref(made, lambda _: send()); del made; time.sleep(20)
""",
    "in the collector": """
made = Finalised(); made.own = made; del made; gc.collect(); time.sleep(20)
""",
    "in an except clause that takes all": """
try:
    send()
except:
    pass
raise_if_signalled()
""",
    "in __del__ while signals wait": """
with signals_wait():
    made = Finalised(); del made
time.sleep(20)
""",
    "dropped, before signals wait": """
try:
    send()
except:
    pass
with signals_wait():
    pass
time.sleep(20)
""",
    "hang-up without a terminal": "send(signal.SIGHUP); time.sleep(20)",
    "hang-up twice": "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP]); send(signal.SIGHUP); "
    "signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGHUP]); time.sleep(20)",
}


def run(code, **options):
    return subprocess.Popen(
        [sys.executable, "-c", START + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **options,
    )


@pytest.mark.parametrize("case", LOST)
def test_no_signal_is_lost(case):
    """Wherever it arrives, the search stops, in order: what follows the block is run undisturbed."""
    body = "".join(f"        {line}\n" for line in LOST[case].strip().splitlines())
    code = f"""
with stopped_by_signals():
    try:
{body}    except SearchStopped as stop:
        signal_handled()
        time.sleep(0.2)
        with signals_wait():
            raise_if_signalled()
        send(signal.SIGHUP)
        print("stopped", stop)
"""
    process = run(code)
    said, _ = process.communicate(timeout=15)
    assert (process.returncode, said) == (0, f"stopped {'SIGHUP' if 'hang-up' in case else 'SIGINT'}\n")


def test_other_exceptions_in_finalisers_are_said_as_ever():
    """And the hooks of the process are its own again afterwards."""
    process = run("""
class Bad:
    def __del__(self): raise ValueError("told")
before = sys.unraisablehook, signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGHUP)
with stopped_by_signals():
    made = Bad(); del made
    made = Finalised()
    try:
        del made; time.sleep(10)
    except SearchStopped:
        signal_handled()
assert before == (sys.unraisablehook, signal.getsignal(signal.SIGALRM), signal.getsignal(signal.SIGHUP))
print("end")
""")
    said, _ = process.communicate(timeout=15)
    assert process.returncode == 0, said
    assert "ValueError: told" in said
    assert "SearchStopped" not in said
    assert said.endswith("end\n")


def test_a_second_signal_ends_the_process_at_once():
    """Also while the first one waits."""
    process = run("""
with stopped_by_signals(), signals_wait():
    send()
    print("waits", flush=True)
    time.sleep(20)
""")
    assert process.stdout.readline() == "waits\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == -signal.SIGINT


def test_nohup_stays():
    """A process that was started with SIGHUP ignored is not stopped by it."""
    process = run(
        "with stopped_by_signals():\n    send(signal.SIGHUP)\n    print('goes on')",
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    assert process.communicate(timeout=10)[0] == "goes on\n"


def test_processes_that_were_forked_leave_the_end_to_their_parent():
    """Ctrl-C and a hang-up reach all processes of a terminal: those that load images say nothing."""
    process = run("""
with stopped_by_signals():
    child = os.fork()
    if not child:
        time.sleep(1); os._exit(0)
    for number in (signal.SIGINT, signal.SIGHUP):
        time.sleep(0.2); os.kill(child, number)
    assert os.waitpid(child, 0)[1] == 0
    child = os.fork()
    if not child:
        time.sleep(20); os._exit(0)
    time.sleep(0.2); os.kill(child, signal.SIGTERM)  # not in the middle of the fork
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
""")
    assert process.communicate(timeout=10)[0] == "-15\n"


TERMINAL = """
with stopped_by_signals():
    open(sys.argv[1], "w").write("ready")
    try:
        for _ in range(200):
            time.sleep(0.05)
            if os.path.exists(sys.argv[1] + ".end"):
                break
        open(sys.argv[1], "w").write("went on")
    except SearchStopped as stop:
        open(sys.argv[1], "w").write(f"stopped {stop}")
"""


@pytest.mark.parametrize(
    ("sent", "expected"), [(None, "went on"), (signal.SIGHUP, "stopped SIGHUP"), (signal.SIGTERM, "stopped SIGTERM")]
)
def test_a_terminal_that_goes_away_stops_nothing_and_a_signal_does(tmp_path, sent, expected):
    """A SIGHUP means two things: the terminal was closed, or somebody asks the search to end."""
    pid, terminal = os.forkpty()
    file = tmp_path / "state"
    if not pid:
        os.execv(sys.executable, [sys.executable, "-c", START + TERMINAL, str(file)])
    _until(lambda: file.exists() and file.read_text() == "ready")
    if sent is None:
        os.close(terminal)
        time.sleep(0.3)
        (tmp_path / "state.end").touch()
    else:
        os.kill(pid, sent)
    os.waitpid(pid, 0)
    if sent is not None:
        os.close(terminal)
    assert file.read_text() == expected


def _until(happened):
    end = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)
