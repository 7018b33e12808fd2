"""The runs that put a setting of the winner back are as safe as all others."""

import signal
from collections import Counter

from dcml_tune.utils.files import read_checksummed


def test_a_killed_ablation_repeats_no_run(cheap):
    """Killed after one of its runs has ended: a resume runs the others, and the verdict has all of them."""
    process = cheap.start("--num-samples", 3, "--scheduler", "none", "--ablate", 2)
    cheap.wait_for("put back to published, one at a time: ", process, 200)
    cheap._wait(lambda: process.log.read_text().count("ablate-") >= 6, process, 200)
    process.send_signal(signal.SIGKILL)
    process.wait()
    status, said = cheap.resume()
    assert status == 0, said
    runs = {key: run for key, run in cheap.runs().items() if run.data.tags["dcml.role"] == "ablate"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    trained = Counter(cheap.trained())
    epochs = [trained[f"{key.removeprefix('s/')} {epoch}"] for key in runs for epoch in (1, 2, 3, 4)]
    assert (min(epochs), sum(epochs) <= 9) == (1, True)  # one epoch was in flight
    found = read_checksummed(cheap.output / "s" / "verdict.json")
    settings = found["ablation"]["settings"]
    assert len(settings) == len(runs) == 2
    assert all(each["difference"] is not None and each["low"] is None for each in settings)
    assert all("(one run each, no interval)" in line for line in found["lines"] if " -> " in line)
    measures = cheap.runs()["s"].data.metrics
    assert {f"verdict/ablation/{each['setting']}" for each in settings} <= measures.keys()
