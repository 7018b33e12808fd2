"""`python -m dcml_tune.train`: the original's command line, and what a run leaves."""

import json
import os
import shlex
import signal
import subprocess
import sys

import mlflow
import pytest
import torch

from dcml_tune import browse, evaluate
from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.models.embedder import MaskedEmbedder, best_model, load
from dcml_tune.train import Flags, main, parser
from dcml_tune.utils import checkpoint

# The authors' sample command for SOP with the original's flag names, but for the script's name.
SAMPLE = """
--dataset=sop --dataset-dir=DIRECTORY --backend=faiss --sz-embedding=512 --mod-epoch=2 --nb-clusters=32
--nb-epochs=180 --batch-size=80 --num-samples-per-class=2 --mod-epoch-freeze=1 --sampler=distanceweighted
--weight-decay=1e-4 --batch-sampler=adaptbalanced --force-full-embedding-epoch=80 --mask-lr-mult=100
--masking-lambda=0.01 --mask-wd-mult=1 --base-lr=1e-5 --lr-gamma=0.3 --criterion=MarginLoss --optimizer=Adam
--arch=resnet50 -i=3 -seed=7 -crs=5 --log-dir=masks --cuda-device=0 --mask-relu=1 --lr-step=inf
"""

TINY = {
    "train_classes": 16, "arch": "test_resnet", "weights": "none", "sz_resize": 32, "sz_crop": 32, "sz_embedding": 8,
    "batch_size": 8, "num_samples_per_class": 2, "nb_epochs": 2,
}  # fmt: skip


@pytest.fixture
def train(folder, tmp_path, monkeypatch, capsys):
    """Runs the command on a folder of images; gives its status and what it said."""
    monkeypatch.chdir(tmp_path)

    def run(*words, **settings):
        given = [f"--{n.replace('_', '-')}={v}" for n, v in {**TINY, "dataset_dir": folder, **settings}.items()]
        status = main(["folder", "--output-dir", str(tmp_path / "runs"), *given, *words])
        told = capsys.readouterr()
        return status, told.out + told.err

    return run


def runs(directory):
    client = mlflow.MlflowClient(f"sqlite:///{directory / 'runs' / 'mlflow.db'}")
    found = client.search_runs([client.get_experiment_by_name("dcml_tune").experiment_id])
    return {run.info.run_name: run for run in found}


def test_the_sample_command_is_read_as_it_stands():
    """Every flag of the original means what it meant."""
    config = Flags.read(SAMPLE.split()).config()
    expected = {
        "dataset": "sop", "dataset_dir": "DIRECTORY", "backend": "faiss", "sz_embedding": 512, "mod_epoch": 2,
        "nb_clusters": 32, "nb_epochs": 180, "batch_size": 80, "num_samples_per_class": 2, "mod_epoch_freeze": 1,
        "sampler": "distanceweighted", "weight_decay": 1e-4, "batch_sampler": "adaptbalanced",
        "force_full_embedding_epoch": 80, "mask_lr_mult": 100, "masking_lambda": 0.01, "mask_wd_mult": 1,
        "base_lr": 1e-5, "lr_gamma": 0.3, "criterion": "margin", "optimizer": "adam", "arch": "resnet50", "seed": 7,
        "clustering_random_state": 5, "mask_relu": True, "lr_step": None,
    }  # fmt: skip
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], None),
        (["-i", "3"], "3"),
        (["--experiment-id=3"], "3"),
        (["--experiment", "x"], "x"),
        (["--log-dir", "masks", "-i=3"], "masks-3"),
        (["--log-dir", "masks", "-i=3", "--name", "mine"], "mine"),
    ],
)
def test_names_of_runs(words, name):
    """--name, or the original's two parts."""
    assert Flags.read(words).run_name == name


def test_data_set_by_place_or_by_flag():
    """Either names it; two that differ are refused; without any it is the original's default."""
    of = lambda *words: Flags.read([*words]).chosen_dataset  # noqa: E731
    assert (of("cars"), of("--dataset=cars"), of("cars", "--dataset", "cars"), of()) == ("cars", "cars", "cars", "cub")
    with pytest.raises(SettingError, match="--dataset sop: data set cars is named, too"):
        of("cars", "--dataset", "sop")


def test_flags_without_meaning_are_said_in_one_line(train):
    """They are accepted, with or without a value, and said once."""
    words = ["--init-clusters=2", "--with-l1", "--is-debug", "--verbose", "--reset-learners-fix", "1", "--save-masks=0"]
    status, said = train(*words, "--name=r")
    (line,) = [line for line in said.splitlines() if line.startswith("ignored here")]
    assert status == 0
    assert all(word.split("=")[0] in line for word in words if word.startswith("--"))


def test_an_odd_name_in_an_odd_place_works_everywhere(folder, tmp_path, capsys):
    """A run is trained, listed, and evaluated by the command that is printed, by its path, and by MLflow's id."""
    output, name = tmp_path / "r?u%20n#s & {y}'\"<>\\;$HOME[b]*é☃", "lr%20x & {y};[b]:cub:"
    settings = [f"--{key.replace('_', '-')}={value}" for key, value in TINY.items()]
    status = main(["folder", "--dataset-dir", str(folder), "--output-dir", str(output), "--name", name, *settings])
    said = capsys.readouterr().out
    assert status == 0
    printed = shlex.split(said.partition("measure it on the test classes:\n")[2].splitlines()[0])
    assert browse.main(["--output-dir", str(output), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["name"] == name
    elsewhere = ["--output-dir", str(output), "--dataset-dir", str(folder), "--clusterings", "0"]
    for words in (printed[3:], [f"{output / name}/"], [name], [row["run_id"]]):
        assert evaluate.main([*words, *elsewhere]) == 0
    assert name in capsys.readouterr().out
    assert os.listdir(tmp_path) == [output.name]
    assert {name, "mlflow.db", "mlartifacts", "store", "test-ledger.jsonl"} <= set(os.listdir(output))
    for word in os.listdir(output):  # nothing of it may be the name of another run
        with pytest.raises(SettingError, match="--name"):
            main(["emoji", "--output-dir", str(output), "--name", word])


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU; with one, the device is taken")
def test_a_device_that_is_not_there(train):
    """Without GPUs the flag is said to do nothing."""
    status, said = train("--cuda-device=0", "--name=r")
    assert (status, "cuda_device=0 has no effect: there is no GPU here" in said) == (0, True)


def test_a_run_leaves_measures_and_a_model(train, tmp_path):
    """Held-out and test measures in MLflow, named apart; a model that loads; the setting's parameters."""
    status, said = train("--score-test", "--allow-partial", "--name=r", criterion="NPairsLoss")
    assert status == 0, said
    run = runs(tmp_path)["r"]
    assert run.info.status == "FINISHED"
    assert {"val/recall_at_1", "val/map_at_r_best", "test/recall_at_1", "train/loss"} <= set(run.data.metrics)
    assert (run.data.params["criterion"], run.data.tags["dcml.protocol"]) == ("npairs", "held_out")
    model = load(best_model(tmp_path / "runs" / "r" / "checkpoint"))
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 8)
    (measure,) = [line for line in said.replace(sys.executable, "python").splitlines() if "dcml_tune.evaluate" in line]
    assert measure.strip().startswith("python -m")
    assert measure.endswith("--allow-partial")
    with pytest.raises(SettingError, match="r"):
        train("--name=r")


def test_the_papers_protocol_is_labelled_wherever_its_numbers_are(train, tmp_path):
    """All training classes train; the test classes are scored every epoch, under names that say so."""
    status, said = train("--name=r", "--protocol=paper", "--score-test")
    assert status == 0
    assert "paper protocol: epochs and trials are chosen on the test classes" in said
    assert "score_test has no effect" in said
    assert "paper/recall_at_1" in said
    run = runs(tmp_path)["r"]
    names = set(run.data.metrics)
    assert {"paper/recall_at_1", "paper/recall_at_1_best", "paper/map_at_r"} <= names
    assert not [name for name in names if name.startswith(("val/", "test/"))]
    assert run.data.tags["dcml.protocol"] == "paper"


def test_nothing_is_saved_when_asked(train, tmp_path):
    """--save-model=0 writes no checkpoint, and says what that means."""
    status, said = train("--save-model=0", "--name=r")
    assert (status, "cannot be resumed" in said) == (0, True)
    assert not list((tmp_path / "runs" / "r").rglob("*.safetensors"))


def test_every_nth_epoch_is_saved_too(train, tmp_path):
    """--save-model N keeps the best model and those of epochs N, 2N, ...; each loads; a resume goes on with it."""
    status, said = train("--save-model=2", "--name=r", nb_epochs=5)
    assert status == 0, said
    directory = tmp_path / "runs" / "r" / "checkpoint"
    assert sorted(path.name for path in directory.glob("epoch-*")) == ["epoch-00002", "epoch-00004"]
    assert best_model(directory) is not None
    assert load(directory / "epoch-00004")(torch.zeros(1, 3, 32, 32)).shape == (1, 8)
    status, said = train("--name=s")
    assert not list((tmp_path / "runs" / "s").rglob("epoch-*"))
    of = lambda *words: parser().parse_args([*words]).save_model  # noqa: E731
    assert [of(), of("--save-model", "True"), of("--save-model=0"), of("--save-model=7")] == [1, 1, 0, 7]


DIVIDING = {"nb_clusters": 2, "mod_epoch": 2, "nb_epochs": 5, "mask_lr_mult": 100, "base_lr": 1e-3}


def test_a_checkpoint_goes_on_at_its_next_epoch(train, tmp_path):
    """With its masks and its division, as the original; the epochs that are left are trained, and no others."""
    assert train("--save-model=3", "--name=r", **DIVIDING)[0] == 0
    given = tmp_path / "runs" / "r" / "checkpoint" / "epoch-00003"
    status, said = train("--name=s", f"--checkpoint={given}", "--save-model=4", **{**DIVIDING, "base_lr": 1e-12})
    assert status == 0, said
    assert "continues after epoch 3" in said
    assert "has no effect" not in said
    assert [line.split(":")[0] for line in said.splitlines() if line.startswith("epoch ")] == ["epoch 4/5", "epoch 5/5"]
    later = tmp_path / "runs" / "s" / "checkpoint" / "epoch-00004"
    # Epoch 4 divides nothing: masks and clusters are those of the checkpoint.
    torch.testing.assert_close(load(later).masks, load(given).masks)
    client, run = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"), runs(tmp_path)["r"]
    kept = {each.path for each in client.list_artifacts(run.info.run_id, "divisions")}
    assert {f"divisions/division-0000{epoch}.json" for epoch in (2, 4)} <= kept
    assert load(given).masks.shape == (2, 8)
    partitions = [checkpoint.read(place, "division")[0]["partition"] for place in (given, later)]
    assert torch.equal(*partitions)
    with pytest.raises(SettingError, match=r"has 2 masks after epoch 3, and these settings have 1 learners then"):
        train("--name=t", f"--checkpoint={given}", **{**DIVIDING, "mod_epoch": 4})
    with pytest.raises(SettingError, match=r"nb_epochs=3: the model in .* was saved after epoch 3; raise it"):
        train("--name=t", f"--checkpoint={given}", **{**DIVIDING, "nb_epochs": 3})


def test_a_checkpoint_of_other_images_is_divided_anew(train, tmp_path):
    """Where the learners' images are not those of this run, they are clustered before the first epoch."""
    assert train("--save-model=3", "--name=r", **DIVIDING)[0] == 0
    given = tmp_path / "runs" / "r" / "checkpoint" / "epoch-00003"
    status, said = train("--name=s", f"--checkpoint={given}", "--val-share=0.5", **DIVIDING)
    assert status == 0, said
    partition = checkpoint.read(best_model(tmp_path / "runs" / "s" / "checkpoint"), "division")[0]["partition"]
    assert partition.max() == 1


def test_a_run_begins_with_a_trained_model(train, tmp_path, folder):
    """--restart-schedule: weights of the model, masks of this run's own; step 0 is still the pretrained network's."""
    config = TrialConfig(**TINY, dataset="folder", dataset_dir=str(folder), nb_clusters=2, hierarchy_method="none")
    given = MaskedEmbedder(config)
    with torch.no_grad():
        given.embedding.bias.fill_(3.0)
    given.save(tmp_path / "given")
    start = [f"--checkpoint={tmp_path / 'given'}", "--restart-schedule"]
    status, said = train("--name=r", *start, base_lr=1e-12, init_method="pca")
    assert status == 0, said
    assert "init_method=pca has no effect: training continues the model of --checkpoint" in said
    trained = load(best_model(tmp_path / "runs" / "r" / "checkpoint"))
    assert trained.masks.shape == (1, 8)
    torch.testing.assert_close(trained.embedding.bias, given.embedding.bias)
    (tmp_path / "file.pt").write_bytes(b"a pickle")
    for words, reason in [
        ([*start, "--sz-embedding=16"], r"sz_embedding=16: the model in .* has 8; give --sz-embedding 8"),
        ([f"--checkpoint={tmp_path / 'nothing'}"], "cannot be read"),
        (start[:1], "does not say its epoch; add --restart-schedule"),
        (start[1:], "--restart-schedule: says how --checkpoint begins"),
        ([f"--checkpoint={tmp_path / 'file.pt'}"], "is a file; give the directory of a model"),
    ]:
        with pytest.raises(SettingError, match=reason):
            train("--name=s", *words)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "13 classes (78 images) train, 3 (18 images) are held out"),
        (["--val-share=0"], "16 classes (96 images) train; none are held out"),
        (["--protocol=paper"], "16 classes (96 images) train; epochs are compared on the test classes"),
    ],
)
def test_the_head_says_what_trains(train, words, expected):
    """The first line counts training classes, the next says which of them train, and how to have it as the original."""
    _, said = train("--name=r", *words, nb_epochs=1)
    assert "16 training classes" in said.splitlines()[0]
    (line,) = [line for line in said.splitlines() if expected in line]
    assert ("--val-share 0" in line and "--protocol paper" in line) == (not words)


def test_bad_input_is_refused_before_anything_is_written(train, tmp_path):
    """A k-means that needs a GPU, a data set that is not there, settings that contradict each other."""
    for settings, said in [
        ({"dataset_dir": tmp_path / "nothing"}, "does not exist"),
        ({"nb_clusters": 3}, "power of two"),
        *([] if torch.cuda.is_available() else [({"backend": "faiss-gpu"}, "GPU")]),
    ]:
        with pytest.raises(SettingError, match=said):
            train("--name=r", **settings)
    assert not (tmp_path / "runs" / "r").exists()


def test_an_interrupted_run_is_resumed(folder, tmp_path):
    """SIGTERM ends it in order, with status 3 and the command to go on; the rest of the epochs is run, each once."""
    flags = [f"--{n.replace('_', '-')}={v}" for n, v in {**TINY, "dataset_dir": folder, "nb_epochs": 300}.items()]
    words = [sys.executable, "-m", "dcml_tune.train", "folder", "--output-dir", str(tmp_path / "runs"), "--name", "r"]
    with subprocess.Popen([*words, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("epoch 3/"):
                process.send_signal(signal.SIGTERM)
                break
        _, err = process.communicate(timeout=60)
    assert process.returncode == 3, err
    assert "--resume r" in err
    assert runs(tmp_path)["r"].info.status == "KILLED"
    state = next((tmp_path / "runs" / "r" / "checkpoint").glob("trainer-*.json"))
    reached = json.loads(state.read_text())["epoch"]
    assert 3 <= reached < 300
    with pytest.raises(SettingError, match="--nb-epochs: a run continues with its own settings"):
        main(["--resume", "r", "--output-dir", str(tmp_path / "runs"), "--nb-epochs", "9"])
    with pytest.raises(SettingError, match="no interrupted run of this name"):
        main(["--resume", "s", "--output-dir", str(tmp_path / "runs")])


def test_a_resumed_run_ends_as_one_that_ran_through(train, tmp_path, monkeypatch, capsys):
    """The same measures at every epoch, in one MLflow run."""
    train("--name=whole", nb_epochs=4)
    from dcml_tune.training.trainer import Trainer
    from dcml_tune.utils.signals import SearchStopped

    real = Trainer.epoch_steps

    def stopped(self):
        if self.epoch == 2:  # it begins while the epoch before is saved
            raise SearchStopped("SIGTERM")
        return (yield from real(self))

    monkeypatch.setattr(Trainer, "epoch_steps", stopped)
    assert train("--name=cut", nb_epochs=4)[0] == 3
    monkeypatch.setattr(Trainer, "epoch_steps", real)
    assert main(["--resume", "cut", "--output-dir", str(tmp_path / "runs")]) == 0
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    found = runs(tmp_path)
    curves = [
        [(point.step, point.value) for point in client.get_metric_history(found[name].info.run_id, "train/loss")]
        for name in ("whole", "cut")
    ]
    assert curves[0] == curves[1]
    assert [step for step, _ in curves[0]] == [1, 2, 3, 4]
    assert found["cut"].info.status == "FINISHED"


def curve(tmp_path, name, metric="train/loss"):
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    return [(point.step, point.value) for point in client.get_metric_history(runs(tmp_path)[name].info.run_id, metric)]


def test_an_error_of_the_next_epoch_does_not_lose_the_saved_one(train, tmp_path, monkeypatch, capsys):
    """It has begun while the epoch before was saved; that one is shown and recorded, then the error ends the run."""
    train("--name=whole", nb_epochs=4)
    from dcml_tune.training.updates import Updates

    real = Updates.steps

    def broken(self, plan, partition):
        if plan.epoch == 2:
            raise RuntimeError("CUDA error: the device is gone")
        return (yield from real(self, plan, partition))

    monkeypatch.setattr(Updates, "steps", broken)
    with pytest.raises(RuntimeError, match="the device is gone"):
        train("--name=cut", nb_epochs=4)
    assert "epoch 2/4" in capsys.readouterr().out
    assert [step for step, _ in curve(tmp_path, "cut")] == [1, 2]
    monkeypatch.setattr(Updates, "steps", real)
    assert main(["--resume", "cut", "--output-dir", str(tmp_path / "runs")]) == 0
    assert curve(tmp_path, "cut") == curve(tmp_path, "whole")


@pytest.mark.parametrize("ends", [2, 4])
def test_a_run_that_ends_before_it_records_a_saved_epoch_records_it_later(ends, train, tmp_path, monkeypatch):
    """As one does that is killed; with the division of that epoch, and what it scored on the test classes."""
    from dcml_tune.train import _Run

    settings = {"nb_epochs": 4, "nb_clusters": 2, "mod_epoch": 1, "mask_lr_mult": 10}
    train("--name=whole", "--score-test", **settings)
    real = _Run._record

    def killed(self, tracker, epoch):
        if epoch.epoch == ends:
            raise SystemExit
        real(self, tracker, epoch)

    monkeypatch.setattr(_Run, "_record", killed)
    with pytest.raises(SystemExit):
        train("--name=cut", "--score-test", **settings)
    assert [step for step, _ in curve(tmp_path, "cut")] == list(range(1, ends))
    monkeypatch.setattr(_Run, "_record", real)
    assert main(["--resume", "cut", "--output-dir", str(tmp_path / "runs")]) == 0
    found, client = runs(tmp_path), mlflow.MlflowClient(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    for metric in ("train/loss", "epoch_best", *(["test/recall_at_1"] if ends == 4 else [])):
        assert curve(tmp_path, "cut", metric) == curve(tmp_path, "whole", metric) != []
    of = [
        {each.path for each in client.list_artifacts(found[name].info.run_id, "divisions")} for name in ("whole", "cut")
    ]
    assert of[0] == of[1] != set()
    assert found["cut"].data.tags["dcml.test_scored_before"] == "1"
    assert found["cut"].info.status == "FINISHED"


def test_weights_and_biases_offline(train, tmp_path, monkeypatch):
    """--wandb-enabled writes a run below the output directory, with settings and measures; nothing leaves the machine."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    status, said = train("--wandb-enabled", "--name=r", "--score-test")
    assert status == 0, said
    (log,) = (tmp_path / "runs" / "wandb").glob("offline-run-*/*.wandb")
    text = log.read_bytes()
    assert b"test/recall_at_1" in text
    assert b"sz_embedding" in text


def test_weights_and_biases_without_a_login(folder, tmp_path):
    """One line with the remedy, before anything trains."""
    flags = [f"--{n.replace('_', '-')}={v}" for n, v in {**TINY, "dataset_dir": folder}.items()]
    words = [sys.executable, "-m", "dcml_tune.train", "folder", "--output-dir", str(tmp_path / "runs"), "--name", "r"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    done = subprocess.run(
        [*words, *flags, "--wandb-enabled"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env={**environment, "WANDB_MODE": "online", "HOME": str(tmp_path), "WANDB_CONFIG_DIR": str(tmp_path)},
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "--wandb-enabled: " in line
    assert "WANDB_MODE=offline" in line
    assert not (tmp_path / "runs" / "mlflow.db").exists()
