"""A trial's process dies, hangs, raises, diverges, or wants more memory than there is: that trial alone is concerned."""

import re

import optuna
import psutil


def test_each_fault_concerns_its_own_trial(scene):
    """What passes is tried again from the last epoch; what would be repeated fails at once; the reason is everywhere."""
    scene.faults(
        {"trial": "000", "epoch": 2, "kind": "kill"},
        {"trial": "001", "epoch": 1, "kind": "raise"},
        {"trial": "002", "epoch": 3, "kind": "diverge"},
        {"trial": "003", "epoch": 2, "kind": "memory"},
        {"trial": "004", "epoch": 0, "kind": "GPU memory"},
        {"trial": "005", "epoch": 2, "kind": "raise", "times": 9},
        {"trial": "006", "epoch": 2, "kind": "kill after saving"},
        {"trial": "007", "epoch": 0, "kind": "setup"},
    )
    status, said = scene.search("--num-samples", 8, "--scheduler", "none")
    assert status == 3, said
    scene.assert_sound(8)
    failed = {
        "002": "the loss of epoch 3 is not finite",
        "003": "out of memory; lower --max-concurrent or lower --batch-size",
        "004": "out of GPU memory",
        "005": "RuntimeError: the file server does not answer",
    }
    runs = scene.runs()
    for key, trial in scene.study().items():
        run = runs[f"s/{key}"]
        if key not in failed:
            assert (key, trial.state.name, run.data.tags["dcml.state"]) == (key, "COMPLETE", "done")
            continue
        assert (trial.state.name, run.info.status, run.data.tags["dcml.state"]) == ("FAIL", "FAILED", "failed")
        assert failed[key] in run.data.tags["dcml.reason"]
        table = next(line for line in said.splitlines() if line.startswith(f"│ {key}"))
        assert "failed" in table
        assert failed[key] in re.sub(r"\s*│\s*", " ", said).replace("\n", " ") or failed[key][:20] in said
        assert f"trial {key} failed: " in said
    # A trial that was tried again did no epoch again that it had saved.
    trained = scene.trained()
    assert len(trained) == len(set(trained))
    assert "its process died" in runs["s/000"].data.tags["dcml.tried_again"]
    assert (scene.output / "s" / "trials" / "005" / "error.txt").read_text().count("file server") > 0


def test_a_trial_that_takes_the_machines_memory_is_ended_and_tried_again(cheap):
    """Ray's own monitor ends it (here as soon as 5 GiB more than now are taken), and the reason is said."""
    memory = psutil.virtual_memory()
    assert memory.available > 10 << 30, "this test needs 10 GiB of memory that are free"
    cheap.environment["RAY_memory_usage_threshold"] = (
        f"{(memory.total - memory.available + (5 << 30)) / memory.total:.3f}"
    )
    cheap.environment["RAY_memory_monitor_refresh_ms"] = "100"
    cheap.faults({"trial": "000", "epoch": 2, "kind": "hoard"})
    status, said = cheap.search("--num-samples", 2, "--scheduler", "none", "--max-concurrent", 1)
    assert status == 0, said
    cheap.assert_sound(2)
    reason = "ended by Ray: the machine ran out of memory; lower --max-concurrent or --batch-size"
    assert reason in cheap.runs()["s/000"].data.tags["dcml.tried_again"]
    assert sorted(cheap.trained()) == [f"{key} {epoch}" for key in ("000", "001") for epoch in (1, 2, 3, 4)]


def test_a_step_that_hangs_is_ended(cheap):
    """By --trial-timeout: tried again from its last epoch; failed when it hangs each time; frozen processes, too."""
    cheap.faults(
        {"trial": "000", "epoch": 1, "kind": "hang"},
        {"trial": "001", "epoch": 1, "kind": "freeze"},
        {"trial": "002", "epoch": 2, "kind": "hang", "times": 9},
    )
    status, said = cheap.search("--num-samples", 4, "--trial-timeout", "12s", "--scheduler", "none")
    assert status == 3, said
    cheap.assert_sound(4)
    assert cheap.states() == {"000": "COMPLETE", "001": "COMPLETE", "002": "FAIL", "003": "COMPLETE"}
    assert "reported nothing for 12 s (--trial-timeout)" in cheap.runs()["s/002"].data.tags["dcml.reason"]
    assert "reported nothing" in cheap.runs()["s/001"].data.tags["dcml.tried_again"]
    assert "trial 002 failed: reported nothing" in said


def test_samplers_learn_from_failures(cheap):
    """A failed setting is in the study a second time, as one that was pruned at the worst value: TPE looks at those."""
    cheap.faults({"trial": "001", "epoch": 1, "kind": "GPU memory"})
    status, said = cheap.search("--num-samples", 3)
    assert status == 3, said
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{cheap.output / 's' / 'optuna.db'}")
    (echo,) = [trial for trial in study.trials if "dcml.failure_of" in trial.user_attrs]
    assert (echo.state.name, echo.value) == ("PRUNED", 0.0)
    assert echo.params == cheap.study()["001"].params
    assert len(cheap.states()) == 3


def test_a_torn_checkpoint_costs_its_trial_alone(scene):
    """Changed while the search was interrupted: named, and that trial starts again; each epoch is in MLflow once."""
    scene.faults({"trial": "000", "epoch": 2, "kind": "hang"}, {"trial": "001", "epoch": 3, "kind": "hang"})
    process = scene.start("--num-samples", 2, "--scheduler", "none")
    scene.wait_for_hang("000", process)
    scene.wait_for_hang("001", process)
    process.terminate()
    assert process.wait(60) == 3
    (weights,) = (scene.output / "s" / "trials" / "000").glob("attempt-*/trainer-*.safetensors")
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    status, said = scene.resume()
    assert status == 0, said
    scene.assert_sound(2)
    assert scene.lost() == ["000 1", "000 2"]
    assert len(set(scene.trained())) == 8
    assert "does not match" in scene.runs()["s/000"].data.tags["dcml.tried_again"]
