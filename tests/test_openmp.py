"""How threads of a trial wait, and what share of a busy core they get: seen by OpenMP and by Ray itself."""

import json
import os
import re
import subprocess
import sys

import pytest

from dcml_tune.utils.openmp import SPIN_COUNT, let_threads_spin_briefly

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "RAY_worker_niceness", "RAY_ADDRESS")
ENTRANCES = {
    "a worker of Ray": "import trainables",
    "a command": "import dcml_tune.cli.parser as p; p.run_command(lambda words: bool(__import__('torch')) - 1)",
}
NICENESS = """
import json, os, ray
from trainables.cluster import connect, disconnect
connect(None)
found = ray.get(ray.remote(lambda: (os.nice(0), os.environ.get("GOMP_SPINCOUNT"))).remote())
print(json.dumps(found), flush=True)
disconnect()
"""


def process(code, **environment):
    """What a fresh process says, with no variable but those that are given."""
    kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    words = [sys.executable, "-c", code]
    return subprocess.run(words, env={**kept, **environment}, capture_output=True, text=True, check=True, timeout=300)


@pytest.mark.skipif(sys.platform != "linux", reason="GNU OpenMP shows what it has read")
@pytest.mark.parametrize("entrance", ENTRANCES)
def test_threads_sleep_soon_while_they_wait(entrance):
    """OpenMP has read it: it was set before torch loaded it."""
    said = process(ENTRANCES[entrance], OMP_DISPLAY_ENV="VERBOSE").stderr
    found = re.findall(r"GOMP_SPINCOUNT = '(\d+)'", said)
    assert found
    assert set(found) == {SPIN_COUNT}


@pytest.mark.parametrize("name", VARIABLES[:2])
def test_what_the_user_says_counts(name, monkeypatch):
    """Of either variable."""
    for each in VARIABLES[:2]:
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, "ACTIVE")
    let_threads_spin_briefly()
    assert [os.environ.get(each) for each in VARIABLES[:2] if each != name] == [None]
    assert os.environ[name] == "ACTIVE"


@pytest.mark.parametrize("given", [None, "5"])
def test_a_trial_has_the_niceness_of_the_search(given):
    """Not Ray's 15; the user's variable counts."""
    found = process(NICENESS, **({} if given is None else {"RAY_worker_niceness": given})).stdout
    assert json.loads(found.splitlines()[-1]) == [os.nice(0) + int(given or 0), SPIN_COUNT]
