"""The command of a job that is retried: started, killed, started again, beside itself, and when all is done."""

import signal


def test_one_command_is_run_until_it_is_done(cheap):
    """No epoch is lost; each exit code says what a retry would bring."""
    cheap.faults({"trial": "001", "epoch": 2, "kind": "hang"})
    words = ["--num-samples", 3, "--scheduler", "none", "--searcher", "auto", "--start-or-resume", "s"]
    process = cheap.start(*words)
    cheap.wait_for_hang("001", process)
    status, said = cheap.search(*words)
    assert (status, "error: search s: process" in said) == (4, True), said
    assert len(said.splitlines()) == 1
    process.send_signal(signal.SIGKILL)
    process.wait()
    status, said = cheap.search(*words)
    assert status == 0, said
    assert "resumed: " in said
    cheap.assert_sound(3)
    assert cheap.lost() == []
    before = len(cheap.trained())
    status, said = cheap.search(*words)
    assert (status, said) == (0, "search s is complete, 3 of 3 trials: nothing is left to run\n")
    assert len(cheap.trained()) == before
    status, said = cheap.search(*words, "--patience", 2)
    assert (status, said) == (
        2,
        "error: --patience 2: search s began with None; leave the flag out, or start a new search\n",
    )
