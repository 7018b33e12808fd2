"""--gpus-per-trial auto: what is measured, what is chosen, what is said."""

import json
import select

import psutil
import pytest
import torch

from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.search import __main__ as search
from dcml_tune.search.flags import parser, read_command_line
from dcml_tune.search.gpu_probe import (
    Choice,
    Measured,
    ProbeError,
    choose,
    full_division,
    measure,
    probe,
    sharing,
    trial,
)
from dcml_tune.search.gpu_probe.child import Child, child_process
from dcml_tune.search.plan import given_plan
from dcml_tune.utils.files import read_checksummed, write_checksummed

GB = 10**9
TINY = TrialConfig(
    arch="resnet18", weights="none", sz_resize=32, sz_crop=32, batch_size=4, num_samples_per_class=2, sz_embedding=16
)
SMALL = [
    "--train-classes", "16", "--weights", "none", "--sz-resize", "32", "--sz-crop", "32", "--sz-embedding", "16",
    "--batch-size", "8", "--num-samples-per-class", "2", "--nb-epochs", "3", "--force-full-embedding-epoch", "2",
    "--mod-epoch", "1", "--mod-epoch-freeze", "0",
]  # fmt: skip
CASES = [
    ({1: 1000, 2: 1600, 4: 1900}, 10, 0.25),
    ({1: 1000, 2: 1600, 4: 1500}, 10, 0.5),
    ({1: 1000, 2: 1020}, 10, 1),
    ({1: 1000, 2: 1030}, 10, 0.5),
    ({1: 1000, 2: 1600, 4: 1640}, 10, 0.5),
    ({1: 1000, 2: 1020, 4: 1050}, 10, 0.5),  # both are within 3 % of the best
    ({1: 1000, 2: 900, 4: 1100, 8: 1500}, 9, 0.125),
    ({1: 1000, 2: 1600, 4: 1900}, 18.1, 0.25),
    ({1: 1000, 2: 1600, 4: 1900}, 18.2, 0.5),  # 20 GB are less than 1.1 times as much
    ({1: 1000}, 79, 1),
]


@pytest.mark.parametrize(("sums", "peak", "expected"), CASES)
def test_the_fastest_share_that_fits_is_chosen(sums, peak, expected):
    """Fewer trials where more bring less than 3 %; never a share of the memory without 10 % of headroom."""
    assert choose(80 * GB, int(peak * GB), sums).gpus_per_trial == expected


def test_the_choice_is_explained():
    """With the sums, and what one trial takes."""
    assert choose(80 * GB, int(12.3 * GB), {1: 1000, 2: 1600, 4: 1900}).why == (
        "0.25 of a GPU each: 1, 2, 4 trials give 1,000, 1,600, 1,900 images/s in sum; one takes 12.3 of 80 GB, no room for 8"
    )
    assert choose(80 * GB, 5 * GB, {1: 1000.4}).why == (
        "1 GPU each: 1 trial gives 1,000 images/s; one takes 5.0 of 80 GB"
    )


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("0.25", 0.25), ("2", 2.0)])
def test_the_flag_takes_a_number_or_auto(text, value):
    """Numbers are numbers."""
    assert parser().parse_args(["emoji", "--gpus-per-trial", text]).gpus_per_trial == value


def test_other_words_are_refused_in_a_line(capsys):
    """Value, rule, remedy."""
    with pytest.raises(SystemExit) as stop:
        parser().parse_args(["emoji", "--gpus-per-trial", "half"])
    said = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert said.startswith(
        "error: --gpus-per-trial half: must be a fraction up to 1, or a whole number up to 8; give such as 0.25, 0.5, 1 or 2, or auto"
    )
    assert "\n" not in said


def test_two_trials_are_measured_at_once():
    """Each in a process of its own, none of which is left."""
    found = measure(TINY, 2, device="cpu", seconds=0.2)
    assert len(found) == 2
    for each in found:
        assert each.images_per_s > 0
        assert 0 < each.allocated <= each.reserved <= each.used < each.total
    assert psutil.Process().children() == []


def test_a_trial_clusters_and_evaluates_before_it_is_measured(monkeypatch):
    """As many images as the search has: their features are clustered into its clusters, their embeddings evaluated."""
    seen = {}
    monkeypatch.setattr(trial, "kmeans", lambda x, k, **how: seen.update(features=tuple(x.shape), k=k, **how))
    monkeypatch.setattr(trial, "retrieval_measures", lambda x, labels, ks: seen.update(embeddings=tuple(x.shape)))
    made = trial.SyntheticTrial(full_division(TINY.changed(backend="torch"), 4), torch.device("cpu"))
    made.warm_up(images=150)
    features = made.model.backbone.dim
    assert seen == {"features": (150, features), "k": 4, "seed": 0, "backend": "torch", "embeddings": (150, 16)}
    seen.clear()
    made.warm_up()
    assert seen == {}


def test_a_trial_waits_until_all_are_ready():
    """It says that it is, and nothing more before it is told."""
    order = {"config": TINY.model_dump(mode="json"), "device": "cpu", "seconds": 0.1, "share": 0.5, "threads": 1}
    order |= {"compiled": False}
    order["images"] = 100
    with child_process() as child:
        child.tell(json.dumps(order))
        assert child.answer() == {"ready": True}
        assert select.select([child.process.stdout], [], [], 1.0)[0] == []
        child.tell("go")
        assert child.answer()["images_per_s"] > 0


def test_an_interruption_leaves_no_process(monkeypatch):
    """Whatever ends the probe, its processes end with it."""

    def interrupted(child):
        assert psutil.Process().children() != []
        raise KeyboardInterrupt

    monkeypatch.setattr(Child, "answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        probe(TINY, device="cpu")
    assert psutil.Process().children() == []


def test_a_probe_that_fails_says_why():
    """Each trial gets a whole GPU then."""
    found = probe(TINY, device="cuda:77", seconds=0.1)
    assert found.gpus_per_trial == 1
    assert found.why.startswith("1 GPU each: a trial could not be measured (")


def measured(rate, used=10):
    return Measured(images_per_s=rate, allocated=used * GB, reserved=used * GB, used=used * GB, total=80 * GB)


@pytest.mark.parametrize(
    ("used", "most", "asked"), [(10, 8, [1, 2, 4]), (40, 8, [1]), (2, 8, [1, 2, 4, 8]), (2, 3, [1, 2])]
)
def test_only_what_fits_is_tried(used, most, asked, monkeypatch):
    """By the memory of one trial, and by how many there are to be."""
    tried = []
    monkeypatch.setattr(sharing, "measure", lambda config, count, **how: [
        tried.append(count) or measured(1000, used)] + [measured(1000, used)] * (count - 1))  # fmt: skip
    assert probe(TINY, most=most).gpus_per_trial == 1 / asked[-1]
    assert tried == asked


def test_more_at_once_may_fail(monkeypatch):
    """What was measured before counts."""

    def measure(config, count, **how):
        if count > 2:
            raise ProbeError("OutOfMemoryError: CUDA out of memory")
        return [measured(900)] * count

    monkeypatch.setattr(sharing, "measure", measure)
    found = probe(TINY)
    assert found.gpus_per_trial == 0.5
    assert found.why.endswith("; 4 at once failed (OutOfMemoryError: CUDA out of memory)")


def test_all_masks_are_there_from_the_beginning():
    """Where the setting can have as many."""
    assert full_division(TINY, 6).nb_clusters == 6
    assert full_division(TINY.changed(fixed_mask=True), 32) == TINY.changed(fixed_mask=True)


def test_auto_is_refused_on_a_cluster(tmp_path):
    """Its GPUs are not those of this machine."""
    words = ["emoji", "--output-dir", str(tmp_path), "--gpus-per-trial", "auto", "--ray-address", "10.0.0.1:6379"]
    with pytest.raises(SettingError, match=r"--gpus-per-trial auto: .*give a number, such as 0\.5"):
        search.main(words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_auto_is_the_default(folder, tmp_path, capsys):
    """The head says so."""
    words = ["folder", "--dataset-dir", str(folder), "--output-dir", str(tmp_path), *SMALL, "--dry-run"]
    assert search.main([*words, "--gpus-per-trial", "auto"]) == 0
    assert "  --gpus-per-trial auto: without a GPU it is the same as the default\n" in capsys.readouterr().out


def test_a_resume_takes_what_was_measured(folder, tmp_path, capsys, monkeypatch):
    """The probe runs once; the record holds its number and its sentence."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    found = [Choice(0.25, "0.25 of a GPU each: 1, 2, 4 trials give more")]
    monkeypatch.setattr(sharing, "probe", lambda config, most, images: found.pop())
    words = ["folder", "--dataset-dir", str(folder), "--output-dir", str(tmp_path), "--name", "s", *SMALL]
    words += ["--gpus-per-trial", "auto"]
    plan = given_plan(read_command_line(words))
    assert plan.shares.gpus_per_trial == 0.25
    plan.begin().release()
    assert read_checksummed(tmp_path / "s" / "search.json")["flags"]["gpus_per_trial"] == 0.25
    for again in ([], ["--gpus-per-trial", "auto"], ["--gpus-per-trial", "0.25"]):
        assert search.main(["--resume", "s", "--output-dir", str(tmp_path), "--dry-run", *again]) == 0
        said = capsys.readouterr().out
        assert "0.25 each" in said
        assert "0.25 of a GPU each: 1, 2, 4 trials give more" in said
    with pytest.raises(SettingError, match=r"began with 0\.25"):
        search.main(["--resume", "s", "--output-dir", str(tmp_path), "--gpus-per-trial", "0.5"])


def test_a_resume_of_a_search_whose_trials_held_two_gpus_gives_each_one(folder, tmp_path, capsys, monkeypatch):
    """Earlier versions held as many GPUs as --gpus-per-trial said, and trained on one of them."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    words = ["folder", "--dataset-dir", str(folder), "--output-dir", str(tmp_path), "--name", "s", *SMALL]
    given_plan(read_command_line([*words, "--gpus-per-trial", "2"])).begin().release()
    asked = read_checksummed(tmp_path / "s" / "search.json")
    assert asked.pop("ranks") == 2
    write_checksummed(tmp_path / "s" / "search.json", asked)
    assert search.main(["--resume", "s", "--output-dir", str(tmp_path), "--dry-run"]) == 0
    assert "2 GPUs, 1 each" in capsys.readouterr().out


def test_a_resume_trains_on_as_many_gpus_as_before(folder, tmp_path, capsys, monkeypatch):
    """Their number is part of every result; another one is refused in a line."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    words = ["folder", "--dataset-dir", str(folder), "--output-dir", str(tmp_path), "--name", "s", *SMALL]
    plan = given_plan(read_command_line([*words, "--gpus-per-trial", "2"]))
    run = plan.runs.run()
    assert (run.ranks, run.device, run.gpu_fraction) == (2, "cuda", 1.0)
    plan.begin().release()
    assert search.main(["--resume", "s", "--output-dir", str(tmp_path), "--dry-run"]) == 0
    assert "4 GPUs, 2 each" in capsys.readouterr().out
    with pytest.raises(SettingError, match=r"--gpus-per-trial 4\.0: search s began with 2\.0; leave the flag out"):
        search.main(["--resume", "s", "--output-dir", str(tmp_path), "--gpus-per-trial", "4"])
