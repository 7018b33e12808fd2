"""A training on two ranks: its numbers, its files, and what happens when a process is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist

from dcml_tune import data
from dcml_tune.config.errors import SettingError
from dcml_tune.config.schedule import EpochPlan
from dcml_tune.config.trial import TrialConfig
from dcml_tune.training.embedding import embed
from dcml_tune.training.overlap import finish
from dcml_tune.training.ranks.exchange import RankError
from dcml_tune.training.seeding import epoch_seed, epoch_seeded
from dcml_tune.training.trainer import Trainer
from trainables import DivideAndConquer, Run

EPOCHS = 3


@pytest.fixture(scope="module")
def config(folder):
    return TrialConfig(
        dataset="folder", dataset_dir=str(folder), train_classes=16, arch="test_resnet", weights="none", sz_resize=32,
        sz_crop=32, sz_embedding=8, batch_size=8, num_samples_per_class=2, batch_sampler="adaptbalanced",
        sampler="distanceweighted", lr_beta=0.1, base_lr=1e-3, mask_lr_mult=10, nb_epochs=EPOCHS, nb_clusters=2, mod_epoch=2,
        features_dropout_prob=0.2, average_epochs=2,
    )  # fmt: skip


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    return tmp_path_factory.mktemp("stores")


@pytest.fixture(scope="module")
def trained(config, stores, tmp_path_factory):
    """A training on two ranks, saved after its second epoch; its measures of each epoch, and what its ranks differ by."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("trial")
    trainer, differences = Trainer(config, stores=stores, device="cpu", ranks=2), []
    steps = type(trainer._updates).steps

    def noted(self, plan, partition):
        found = yield from steps(self, plan, partition)
        differences.append(found.difference)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(trainer._updates), "steps", noted)
        measures = [trainer.run_epoch(), trainer.run_epoch()]
        trainer.save(directory)
        measures.append(trainer.run_epoch())
    yield trainer, measures, directory, differences
    trainer.close()
    torch.set_num_threads(threads)


def numbers(measures):
    return {name: value for name, value in measures.items() if not name.startswith("time/")}


def averaged_epoch(trainer):
    """An epoch of one process that averages the gradients of two batches, written as plainly as possible."""
    plan, step, seed = EpochPlan.at(trainer.epoch, trainer.config), trainer.train_step, trainer.config.seed
    trainer.measured.before_epoch(trainer.model, is_first=trainer.epoch == 0)
    finish(trainer._recluster(plan))
    labels, train = trainer.data.labels, trainer.data.train
    step.lr_scale = 2
    step.set_trainable(plan)
    batches = data.epoch_batches(trainer.partition, labels[train], trainer.config, plan.epoch)
    loaded = list(trainer.loader.epoch([(k, train[rows]) for k, rows in batches], seed=seed, epoch=plan.epoch))
    gradients = []
    states = []
    for rank in (0, 1):  # each rank draws its dropout and its triplets from generators of its own
        with epoch_seeded(seed, plan.epoch, rank):
            states.append(torch.get_rng_state())
    mining = [torch.Generator().manual_seed(epoch_seed(seed, plan.epoch, rank)) for rank in (0, 1)]
    for number, (learner, images, rows) in enumerate(loaded):
        rank = number % 2
        torch.set_rng_state(states[rank])
        step.gradients(images, labels[rows], learner, plan, mining[rank])
        states[rank] = torch.get_rng_state()
        gradients.append([None if each.grad is None else each.grad.clone() for each in step.parameters()])
        if rank == 1 or number == len(loaded) - 1:
            for parameter, *each in zip(step.parameters(), *gradients, strict=True):
                parameter.grad = None if each[0] is None else sum(each) / len(each)
            step.optimizer.step()
            gradients = []
    trainer.epoch += 1
    return len(loaded)


def test_it_is_the_training_of_one_process_that_averages_two_batches(trained, config, stores, one_thread):
    """Clusters, weights and measures after three epochs, the division included; an odd number of batches loses none."""
    trainer, measures, _, _ = trained
    alone = Trainer(config, stores=stores, device="cpu")
    batches = [averaged_epoch(alone) for _ in range(EPOCHS)]
    assert [each["train/batches"] for each in measures] == batches
    assert any(count % 2 for count in batches)
    assert alone.partition.max() == 1
    assert np.array_equal(trainer.partition, alone.partition)
    for name, value in trainer.model.state_dict().items():
        torch.testing.assert_close(value, alone.model.state_dict()[name], rtol=1e-3, atol=1e-4)
    expected = alone.evaluate()
    assert expected == pytest.approx({name: measures[-1][name] for name in expected}, abs=0.02)


def test_ranks_end_each_epoch_with_the_same_parameters(trained):
    """To the last bit."""
    assert trained[3] == [0.0] * EPOCHS


def test_shared_embeddings_are_those_of_one_process(trained, one_thread):
    """In order, to the last bit: the batches are the same. Also fewer images than ranks, and the measured mean of weights."""
    trainer = trained[0]
    views, every = trainer.data.views, np.arange(len(trainer.data.labels))
    twice = np.concatenate([every, every[::-1]])
    assert len(twice) > 2 * 64  # three batches
    for rows in (twice, trainer.data.train, every[3:9]):
        for penultimate in (False, True):
            shared = embed(trainer.model, views, rows, penultimate=penultimate, ranks=trainer.ranks)
            assert torch.equal(shared, embed(trainer.model, views, rows, penultimate=penultimate))
    with trainer.measured.swapped_into(trainer.model):
        shared = embed(trainer.model, views, every, ranks=trainer.ranks)
        assert torch.equal(shared, embed(trainer.model, views, every))


def test_a_saved_training_goes_on_with_as_many_ranks(trained, config, stores, one_thread):
    """With the very numbers; another number of ranks would be another training, and is refused."""
    trainer, measures, directory, _ = trained
    with pytest.raises(SettingError, match="ranks=1: the checkpoint was made with 2; use that"):
        Trainer(config, stores=stores, device="cpu").load(directory)
    state = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.close()  # one training of a process has ranks at a time
    again = Trainer(config, stores=stores, device="cpu", ranks=2)
    try:
        again.load(directory)
        assert numbers(again.run_epoch()) == numbers(measures[-1])
        for name, value in again.model.state_dict().items():
            assert torch.equal(value, state[name]), name
        with pytest.raises(SettingError, match="another training of this process has ranks; close it first"):
            Trainer(config, stores=stores, device="cpu", ranks=2)
        _end_rank_1(again)
    finally:
        again.close()


def _end_rank_1(trainer):
    """A rank that is killed ends the epoch with the reason, instead of letting the others wait; nothing remains."""
    (process,) = trainer._processes._processes
    directory = trainer._processes._directory
    process.kill()
    with pytest.raises(RankError, match="rank 1 of 2 has ended with status -9"):
        trainer.run_epoch()
    trainer.close()
    assert not directory.exists()
    assert not dist.is_initialized()


@pytest.mark.parametrize(
    ("ranks", "rule"), [(0, "ranks=0: must be a whole number from 1 to 8"), (9, "ranks=9: must be a whole number")]
)
def test_a_number_of_ranks_that_cannot_be_is_refused(ranks, rule, config, stores):
    """Before a process is started."""
    with pytest.raises(SettingError, match=rule):
        Trainer(config, stores=stores, device="cpu", ranks=ranks)


def test_there_must_be_a_gpu_for_each_rank(config, stores, monkeypatch):
    """A trial sees those that Ray gave it."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SettingError, match="ranks=2: this process sees 1 GPUs; give at most 1"):
        Trainer(config, stores=stores, device="cuda", ranks=2)


WAITS = """
import sys, time, torch
from pathlib import Path
from dcml_tune import TrialConfig
from dcml_tune.runs.stores import Stores
from dcml_tune.training.ranks.processes import RankProcesses, ready
made = RankProcesses(TrialConfig.model_validate_json(sys.argv[1]), size=2, stores=Stores(Path(sys.argv[2])), device=torch.device("cpu"))
while not ready(made._directory, 1).exists():
    time.sleep(0.05)
print(made._processes[0].pid, made._directory, flush=True)
time.sleep(1000)
"""

TRAINS = """
import sys
from dcml_tune import Trainer, TrialConfig
trainer = Trainer(TrialConfig.model_validate_json(sys.argv[1]), stores=sys.argv[2], device="cpu", ranks=2)
print(trainer._processes._processes[0].pid, trainer._processes._directory, flush=True)
while True:
    trainer.epoch = 0
    trainer.run_epoch()
"""


@pytest.mark.parametrize("code", [WAITS, TRAINS], ids=["before they have met", "in an epoch"])
def test_no_rank_remains_when_the_trial_is_killed(code, config, stores):
    """Whatever the rank waits for."""
    words = [sys.executable, "-c", code, config.model_dump_json(), str(stores)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as leader:
        pid, directory = leader.stdout.readline().split()
        rank = psutil.Process(int(pid))
        time.sleep(1)
        os.kill(leader.pid, signal.SIGKILL)
    psutil.wait_procs([rank], timeout=300)
    assert not rank.is_running() or rank.status() == psutil.STATUS_ZOMBIE
    assert not Path(directory).exists()


def test_a_trial_of_ray_goes_on_after_one_of_its_ranks_was_killed(config, stores, tmp_path):
    """The step raises, so that Ray tries again; the next process continues from the last epoch, with as many ranks."""
    how = {"stores": str(stores), "directory": str(tmp_path / "000"), "key": "000", "device": "cpu", "threads": 2}

    def start(ranks):
        return DivideAndConquer({**config.model_dump(), "run": Run(**how, ranks=ranks).as_dict()})

    first = start(2)
    first.train()
    first.trainer._processes._processes[0].kill()
    with pytest.raises(RankError, match="rank 1 of 2"):
        first.train()
    first.stop()
    other = start(1)
    assert "ranks=1: the checkpoint was made with 2" in other.train()["failed_reason"]
    other.stop()
    second = start(2)
    assert torch.get_num_threads() == 1
    assert [second.train()["epoch"] for _ in range(2)] == [1, 2]
    second.stop()
    assert not dist.is_initialized()


def test_a_checkpoint_is_loaded_in_the_middle_of_an_epoch(config, stores, trained, tmp_path, one_thread):
    """The other rank has begun the epoch that is given up; its next orders are those of the loaded one."""
    place = {"stores": str(stores), "directory": str(tmp_path / "trial"), "device": "cpu", "ranks": 2}
    trial = DivideAndConquer({**config.model_dump(), "run": Run(**place).as_dict()})
    try:
        trial.train()
        (tmp_path / "ray").mkdir()
        trial.save_checkpoint(str(tmp_path / "ray"))
        trial.train()
        assert trial._begun is not None
        trial.load_checkpoint(str(tmp_path / "ray"))
        found = [numbers(trial.trainer.run_epoch()) for _ in range(2)]
    finally:
        trial.cleanup()
    assert found == [numbers(each) for each in trained[1][1:]]
