"""--compile: what is compiled, that it computes the same, and that it travels with a trial.

The back end of the compiler is here `aot_eager`, which traces the network and its gradients as any other and needs no C++
compiler. CUDA graphs need a GPU.
"""

from collections.abc import Sequence

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from dcml_tune.config.trial import TrialConfig
from dcml_tune.models.embedder import MaskedEmbedder
from dcml_tune.search import __main__ as search
from dcml_tune.search import resource_checks
from dcml_tune.search.flags import read_command_line
from dcml_tune.search.gpu_probe import Measured, ProbeError, compiling, sharing
from dcml_tune.search.plan import given_plan
from dcml_tune.training.prefixes import PrefixStore
from dcml_tune.training.trainer import Trainer
from dcml_tune.utils.files import read_checksummed
from trainables import DivideAndConquer, Run
from trainables.resources import Shares

NETWORKS = ["resnet18", "tf_efficientnet_lite0", "test_vit"]
GPU = Shares(concurrent=2, cpus_per_trial=1, gpus_per_trial=0.5, threads_per_trial=1, why="")


@pytest.fixture(autouse=True)
def nothing_compiled():
    """Of another test."""
    torch.compiler.reset()


@pytest.fixture
def counted(monkeypatch):
    """What `compile_backbone` compiles, with `aot_eager`."""
    counter = CompileCounterWithBackend("aot_eager")
    real = MaskedEmbedder.compile_backbone
    monkeypatch.setattr(MaskedEmbedder, "compile_backbone", lambda model: real(model, counter))
    return counter


def _pair(arch):
    """The same model, not compiled and compiled."""
    size = {"test_vit": 160}.get(arch, 64)
    config = TrialConfig(
        arch=arch, weights="none", sz_resize=size, sz_crop=size, sz_embedding=16, batch_size=4, num_samples_per_class=2,
        features_dropout_prob=0.0,
    )  # fmt: skip
    plain, compiled = MaskedEmbedder(config), MaskedEmbedder(config)
    compiled.compile_backbone()
    return plain.train(), compiled.train(), torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8)


def _gradients(model, images):
    model.zero_grad()
    z_BD = model(images)
    (z_BD * torch.linspace(-1, 1, z_BD.shape[1])).sum().backward()
    return z_BD.detach(), {name: each.grad for name, each in model.named_parameters() if each.grad is not None}


@pytest.mark.parametrize("arch", NETWORKS)
def test_it_computes_the_same(arch, counted):
    """Embeddings and all gradients, with the backbone trained and frozen; the network is one graph for each."""
    plain, compiled, images = _pair(arch)
    for frozen in (False, True, False):
        for model in (plain, compiled):
            model.backbone.requires_grad_(not frozen)
        (z_BD, expected), (found_BD, found) = _gradients(plain, images), _gradients(compiled, images)
        torch.testing.assert_close(found_BD, z_BD, rtol=1e-3, atol=1e-5)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            scale = float(value.abs().max())
            torch.testing.assert_close(found[name], value, rtol=1e-2, atol=1e-4 * scale + 1e-7, msg=name)
    assert counted.frame_count == 2
    assert plain.state_dict().keys() == compiled.state_dict().keys()


def test_only_the_training_of_usual_batches_is_compiled(counted):
    """Measures, clusterings and odd batches are bit for bit those without."""
    plain, compiled, images = _pair("resnet18")
    assert torch.equal(plain(images[:3]), compiled(images[:3]))
    with torch.no_grad():
        assert torch.equal(plain.eval()(images), compiled.eval()(images))
    assert counted.frame_count == 0
    compiled.train()(images)
    assert counted.frame_count == 1


def test_a_training_is_compiled_twice(small, tmp_path, counted):
    """With the backbone frozen and trained, however many learners there are."""
    schedule = {"nb_clusters": 2, "mod_epoch": 2, "mod_epoch_freeze": 1, "nb_epochs": 4}
    config = TrialConfig(**small, **schedule, features_dropout_prob=0.0)
    values = []
    for compiled in (False, True):
        trainer = Trainer(config, stores=tmp_path, device="cpu", compiled=compiled)
        values.append([trainer.run_epoch()["train/loss"] for _ in range(4)])
        trainer.close()
        assert counted.frame_count == 2 * compiled
    assert values[1] == pytest.approx(values[0], rel=1e-2)


def test_it_travels_with_a_trial(small, tmp_path, counted):
    """And it is a part of the key under which epochs are shared."""
    keys = set()
    for compiled in (False, True):
        trial = DivideAndConquer({**small, "run": Run(stores=str(tmp_path), compiled=compiled).as_dict()})
        assert trial.trainer.model.compiled == compiled
        keys.add(PrefixStore(tmp_path / "prefixes", trial.trainer).key(1))
        trial.cleanup()
    assert len(keys) == 2


def _plan(small, tmp_path, name, *given):
    words = ["folder", "--dataset-dir", small["dataset_dir"], "--output-dir", str(tmp_path), "--name", name]
    words += [f"--{key.replace('_', '-')}={value}" for key, value in small.items() if not key.startswith("dataset")]
    return given_plan(read_command_line([*words, *given]))


def test_it_has_no_effect_on_the_cpu(small, tmp_path):
    """It is recorded as it was given, so that the same command resumes on a machine with a GPU."""
    plan = _plan(small, tmp_path, "on", "--compile", "on")
    assert not plan.runs.run().compiled
    plan.begin().release()
    assert read_checksummed(tmp_path / "on" / "search.json")["flags"]["compile"] == "on"
    plan = _plan(small, tmp_path, "auto", "--compile", "auto")
    assert plan.config.compile == "off"
    assert any("--compile auto: off, because trials train on the CPU" in line for line in plan.lines)


@pytest.mark.parametrize("gains", [True, False])
def test_a_measurement_decides_once(gains, small, tmp_path, monkeypatch):
    """What it found is recorded; a resume with the same words does not measure again."""
    asked: list[float] = []

    def measured(config, share):
        asked.append(share)
        return gains, "measured"

    monkeypatch.setattr(resource_checks, "share", lambda **_: GPU)
    monkeypatch.setattr(resource_checks, "compiling", measured)
    plan = _plan(small, tmp_path, "auto", "--compile", "auto")
    assert asked == [0.5]
    assert plan.runs.run().compiled == gains
    assert "measured" in plan.lines
    plan.begin().release()
    again = ["--output-dir", str(tmp_path), "--dry-run"]
    assert search.main(["--resume", "auto", "--compile", "auto", *again]) == 0
    assert asked == [0.5]
    other = "off" if gains else "on"
    with pytest.raises(ValueError, match=f"--compile {other}: search auto began with"):
        search.main(["--resume", "auto", "--compile", other, *again])


@pytest.mark.parametrize(
    ("rates", "share", "gains", "why"),
    [
        ((1000, 1300), 1.0, True, "--compile auto: on, 1,300 images/s with it and 1,000 without"),
        ((1000, 1020), 1.0, False, "--compile auto: off, 1,020 images/s with it and 1,000 without"),
        ((1000, 1300), 0.5, True, "--compile auto: on, 2,600 images/s of 2 trials at once with it and 2,000 without"),
        ((1000, 1300), 4.0, True, "--compile auto: on, 1,300 images/s with it and 1,000 without"),
    ],
)
def test_what_is_measured(rates, share, gains, why, monkeypatch):
    """As many trials at once as a GPU holds, with and without."""
    compiled: list[bool] = []

    def measure(config, count, **how) -> Sequence[Measured]:
        compiled.append(how["compiled"])
        return [Measured(images_per_s=rates[how["compiled"]], allocated=1, reserved=1, used=1, total=1)] * count

    monkeypatch.setattr(sharing, "measure", measure)
    assert compiling(TrialConfig(), share) == (gains, why)
    assert compiled == [False, True]


def test_a_compiler_that_fails_turns_it_off(monkeypatch):
    """With its reason."""

    def fails(*_, **how):
        raise ProbeError("no C++ compiler")

    monkeypatch.setattr(sharing, "measure", fails)
    assert compiling(TrialConfig(), 1.0) == (False, "--compile auto: off, it could not be measured (no C++ compiler)")


def test_on_a_cluster_it_cannot_be_measured(small, tmp_path):
    """This machine may have no GPU, and theirs may differ."""
    with pytest.raises(ValueError, match=r"--compile auto: with --ray-address .*; give on or off"):
        _plan(small, tmp_path, "auto", "--compile", "auto", "--ray-address", "10.0.0.1:6379")
