"""A search with --storage whose output directory is lost with its machine."""

import shutil
import time
from itertools import pairwise

import pytest
from s3_server import S3Server

from dcml_tune.utils.files import read_checksummed

ONE = ("--num-samples", 2, "--max-concurrent", 1, "--scheduler", "none", "--start-or-resume", "s")


@pytest.fixture
def stored(cheap, tmp_path):
    """The flags of a search of two trials, one after the other, and its storage."""
    cheap.environment["DCML_TEST_LEASE"] = "6"
    return (*ONE, "--storage", f"file://{tmp_path}/bucket")


def test_a_search_goes_on_in_an_empty_directory(cheap, stored):
    """The driver and its directory are gone: the same command goes on from the storage, and no reported epoch is lost."""
    cheap.faults({"trial": "000", "epoch": 2, "kind": "kill"}, {"trial": "001", "epoch": 3, "kind": "hang"})
    process = cheap.start(*stored)
    cheap.wait_for_hang("001", process)
    process.kill()
    process.wait()
    shutil.rmtree(cheap.output)
    status, said = cheap.search(*stored)
    assert status == 0, said
    assert "waiting up to 6 s for a sign of life from it" in said
    cheap.assert_sound(2)
    assert cheap.lost() == []
    assert cheap.trained() == [f"{trial} {epoch}" for trial in ("000", "001") for epoch in range(1, 5)]
    shutil.rmtree(cheap.output)
    status, said = cheap.search(*stored)
    assert (status, said.strip()) == (0, "search s is complete, 2 of 2 trials: nothing is left to run")


def test_a_second_driver_is_refused(cheap, stored, tmp_path):
    """On another machine, whose directory is empty: exit code 4, with the name of the process that runs the search."""
    cheap.faults({"trial": "000", "epoch": 1, "kind": "hang"})
    process = cheap.start(*stored)
    cheap.wait_for_hang("000", process)
    first, cheap.output = cheap.output, tmp_path / "other"
    status, said = cheap.search(*stored)
    assert status == 4, said
    assert f"search s: process {process.pid} on " in said
    status, said = cheap.search("--num-samples", 2, "--storage", stored[-1])
    assert status == 2, said
    assert f"--name s: {stored[-1]}/s exists; go on with it by --start-or-resume s" in said
    cheap.output = first


def test_a_server_that_does_not_answer_is_waited_for(cheap):
    """For longer than the lease of the driver: the trials wait, the driver stays the driver, and no epoch is trained twice."""
    server = S3Server()
    try:
        cheap.environment |= {**server.environment, "DCML_TEST_LEASE": "6", "DCML_TEST_PAUSE": "1"}
        process = cheap.start(*ONE, "--storage", "s3://searches/runs")
        cheap.wait_for("trial 000 epoch 1:", process)
        server.stop_answering()
        time.sleep(20)
        server.answer()
        status, said = process.wait(480), process.log.read_text()
    finally:
        server.close()
    assert status == 0, said
    cheap.assert_sound(2)
    assert cheap.trained() == [f"{trial} {epoch}" for trial in ("000", "001") for epoch in range(1, 5)]
    epochs = cheap.times("s/000", cheap.uri)
    assert max(after - before for before, after in pairwise(epochs)) > 15, "no epoch waited"


def test_final_runs_go_on_in_an_empty_directory(cheap, stored):
    """Those that have ended are not run again; the verdict has the results of all."""
    flags = (*stored, "--controls", "published", "--final", "best", "--final-seeds", 2)
    cheap.faults({"trial": "final-published-seed-1000003", "epoch": 1, "kind": "hang"})
    process = cheap.start(*flags)
    cheap.wait_for_hang("final-published-seed-1000003", process)
    process.kill()
    process.wait()
    shutil.rmtree(cheap.output)
    status, said = cheap.search(*flags)
    assert status == 0, said
    assert len(cheap.trained()) == len(set(cheap.trained()))
    results = {file.parent.name for file in (cheap.output / "s" / "trials").glob("*/result.json")}
    assert {"final-published", "final-published-seed-1000003", "untrained"} <= results
    assert read_checksummed(cheap.output / "s" / "verdict.json")["winner"]
