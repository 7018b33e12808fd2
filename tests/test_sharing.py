"""Trials that take over the first epochs of others report and compute what they would have computed alone."""

import shutil
import threading
import time

import pytest
import torch

from dcml_tune.training.prefixes import PrefixStore, most_states
from trainables import DivideAndConquer, Run, sharing

SETTINGS = {
    "dataset": "emoji", "ratio_classes": 0.02, "arch": "test_resnet", "weights": "none", "sz_resize": 32, "sz_crop": 32,
    "sz_embedding": 8, "batch_size": 8, "num_samples_per_class": 2, "base_lr": 1e-3, "nb_epochs": 4, "nb_clusters": 2,
    "mod_epoch": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return tmp_path_factory.mktemp("stores")


@pytest.fixture
def start(stores, tmp_path):
    """Starts a trial by its key."""
    (tmp_path / "trials").mkdir()
    started = []

    def trial(key, changed=None, *, shares=(2, 3), prefixes=True, **run):
        where = {"prefixes": str(tmp_path / "prefixes")} if prefixes else {}
        how = Run(
            key=key, stores=str(stores), directory=str(tmp_path / "trials" / key), shares=shares,
            **{"wait_s": 60.0, **where, **run},
        )  # fmt: skip
        started.append(DivideAndConquer({**SETTINGS, **(changed or {}), "run": how.as_dict()}))
        return started[-1]

    yield trial
    for each in started:
        each.stop()


def measures(result):
    return {name: value for name, value in result.items() if name.startswith(("val/", "train/", "clusters/", "masks/"))}


def state(trial):
    learned = trial.trainer.state().learned
    found = {f"{part}/{name}": value for part, each in vars(learned).items() for name, value in each.items()}
    return {**found, "partition": torch.from_numpy(trial.trainer.partition)}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def states_in(tmp_path):
    return sorted(path.name[:5] for path in (tmp_path / "prefixes").iterdir() if path.is_dir())


MASKS = {"masking_lambda": 0.01, "mask_lr_mult": 100.0}


def test_a_trial_goes_on_from_the_epochs_of_another(start, tmp_path):
    """To the last bit: all reports and the final state are those of a trial that computed every epoch."""
    alone = start("alone", MASKS, prefixes=False)
    expected = [alone.train() for _ in range(4)]
    first = start("000")
    for _ in range(4):
        first.train()
    assert states_in(tmp_path) == ["00002", "00003"]
    second = start("001", MASKS)
    found = [second.train() for _ in range(4)]
    assert [measures(each) for each in found] == [measures(each) for each in expected]
    assert [each["epoch"] for each in found] == [1, 2, 3, 4]
    assert [each["epochs/shared"] for each in found] == [1, 2, 2, 2]
    assert [each["done"] for each in found] == [False, False, False, True]
    assert found[0]["untrained"] == expected[0]["untrained"]
    assert same(state(second), state(alone))
    assert second.trainer.history == alone.trainer.history
    assert second.trainer.best.epoch == alone.trainer.best.epoch
    assert "epochs/shared" not in expected[0]


def test_a_trial_measures_the_epochs_of_another_in_its_own_way(start, tmp_path):
    """The mean of epochs and the mix with the first weights are those of a trial that trained every epoch, to the last bit."""
    changed = {"average_epochs": 3, "pretrained_share": 0.3}
    alone = start("alone", changed, prefixes=False)
    expected = [alone.train() for _ in range(4)]
    first = start("000", shares=(1, 2, 3))
    for _ in range(4):
        first.train()
    second = start("001", changed, shares=(1, 2, 3))
    found = [second.train() for _ in range(4)]
    assert [measures(each) for each in found] == [measures(each) for each in expected]
    assert [(each["epoch"], each["epoch_best"]) for each in found] == [
        (n, expected[n - 1]["epoch_best"]) for n in (1, 2, 3, 4)
    ]
    assert [each["epochs/shared"] for each in found] == [1, 2, 3, 3]
    assert same(state(second), state(alone))
    one, two = second.trainer, alone.trainer
    assert same(one.measured.tensors(), two.measured.tensors())
    assert (one.history, one.best.epoch) == (two.history, two.best.epoch)
    assert same(one.best.weights, two.best.weights)
    third = start("002", {**changed, "average_epochs": 1, "mask_lr_mult": 7.0}, shares=(1, 2, 3))
    assert third.train()["epochs/shared"] == 1
    assert third.trainer.epoch == 2


def test_a_restart_reports_the_shared_epochs_again(start, tmp_path):
    """The same reports at the same times, also when the states of others have gone; then it goes on."""
    first = start("000")
    for _ in range(2):
        first.train()
    second = start("001", MASKS)
    reported = [second.train()]
    second.stop()
    shutil.rmtree(tmp_path / "prefixes")
    again = start("001", MASKS)
    found = [again.train() for _ in range(4)]
    assert found[0]["time_ms"] == reported[0]["time_ms"]
    assert found[0]["untrained"] == reported[0]["untrained"]
    assert [each["epochs/shared"] for each in found] == [1, 2, 2, 2]
    again.stop()
    last = start("001", MASKS)
    assert (last.train()["epoch"], last._again) == (4, type(last._again)())


def test_a_trial_of_other_settings_shares_nothing(start):
    """Its first epochs are another computation."""
    first = start("000")
    for _ in range(2):
        first.train()
    other = start("001", {"base_lr": 1e-4})
    assert other.train()["epochs/shared"] == 0


def test_a_trial_waits_for_the_one_that_computes(start):
    """And takes over if that one ends before it has a state to share."""
    first, second = start("000"), start("001", MASKS)
    first.train()
    found = []
    waiting = threading.Thread(target=lambda: found.append(second.train()))
    waiting.start()
    time.sleep(1.0)
    assert not found
    first.train()
    waiting.join()
    assert found[0]["epochs/shared"] == 1
    third, fourth = start("002", {"seed": 3}), start("003", {"seed": 3, **MASKS})
    third.train()
    third.stop()
    assert fourth.train()["epochs/shared"] == 0


@pytest.mark.parametrize("limit", [{"stalled_s": 0.5}, {"wait_s": 0.0}])
def test_a_trial_that_hangs_is_not_waited_for(start, limit):
    """The others compute its epochs themselves; no trial waits longer than its watchdog allows."""
    first, second = start("000"), start("001", MASKS, **limit)
    first.train()
    assert second.train()["epochs/shared"] == 0


def test_a_trial_that_makes_progress_is_waited_for(start, tmp_path, monkeypatch):
    """Each batch counts, of training and of measuring; however long it takes in all."""
    monkeypatch.setattr(sharing, "_SHOW_S", 0.0)
    first = start("000")
    first.train()
    store = PrefixStore(tmp_path / "prefixes", first.trainer)
    patience, found = sharing._Patience(Run(stalled_s=0.05)), []
    for _ in range(4):
        time.sleep(0.1)
        first.trainer.evaluate()
        found.append(store.progress(2))
        assert not patience.is_over(2, found[-1])
    assert len(set(found)) == 4
    time.sleep(0.1)
    assert patience.is_over(2, store.progress(2))
    first.stop()
    assert not first.trainer.model.backbone._forward_hooks


@pytest.mark.parametrize("damage", ["tensors", "results", "gone"])
def test_a_damaged_state_is_computed_again(start, tmp_path, damage):
    """It is removed, and costs nothing but its epochs."""
    first = start("000", shares=(2,))
    reported = [first.train() for _ in range(2)]
    place = next(path for path in (tmp_path / "prefixes").iterdir() if path.is_dir())
    if damage == "tensors":
        (place / "trainer-00002.safetensors").write_bytes(b"")
    elif damage == "gone":
        (place / "trainer-00002.json").write_text("{}")
    else:
        first.trainer.save(tmp_path / "other", result=reported[1], results=[reported[1]])
        shutil.rmtree(place)
        shutil.copytree(tmp_path / "other", place)
    second = start("001", MASKS, shares=(2,))
    found = [second.train() for _ in range(2)]
    assert [each["epochs/shared"] for each in found] == [0, 0]
    assert [measures(each) for each in found] == [measures(each) for each in reported]


def test_a_run_computes_its_last_epoch_itself(start):
    """Which scores the test classes: the report of another run has no such measures."""
    changed = {"val_share": 0.0}
    first = start("final-1", changed, role="confirm", until=3)
    for _ in range(2):
        first.train()
    second = start("final-2", {**changed, **MASKS}, role="final", until=2)
    found = [second.train() for _ in range(2)]
    assert not any("epochs/shared" in each for each in found)
    assert found[1]["done"]
    assert "test/recall_at_1" in found[1]
    third = start("final-3", {**changed, **MASKS}, role="final", until=3)
    found = [third.train() for _ in range(2)]
    assert [each["epochs/shared"] for each in found] == [1, 2]


def test_the_store_is_bounded(start, tmp_path):
    """The state that was used least recently goes first."""
    trial = start("000")
    trial.train()
    trial.train()
    store = PrefixStore(tmp_path / "prefixes", trial.trainer)
    kept = tmp_path / "prefixes" / store.key(2)
    most = most_states(trial.trainer.config)
    for number in range(most):
        shutil.copytree(kept, tmp_path / "prefixes" / f"00001-{number}")
    store._remove_oldest()
    assert len(states_in(tmp_path)) == most


def test_the_key_holds_more_than_settings(start, tmp_path):
    """Metric, images and split."""
    first = PrefixStore(tmp_path / "prefixes", start("000", prefixes=False).trainer)
    for changed, run in (({}, {"metric": "val/recall_at_1"}), ({"ratio_classes": 0.03}, {}), ({"fold": 1}, {})):
        other = PrefixStore(tmp_path / "prefixes", start(f"{changed}{run}"[:9], changed, prefixes=False, **run).trainer)
        assert first.key(1) != other.key(1)
        assert first._facts != other._facts
