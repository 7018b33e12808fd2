"""Algorithms of a trial: what is set by default, with --amp 0 and with --deterministic, and that it travels with the trial.

No test needs a GPU: what torch refuses there is looked for among the operations of a training on the CPU.
"""

import os

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from dcml_tune.config.trial import TrialConfig
from dcml_tune.models.embedder import MaskedEmbedder
from dcml_tune.models.pooling import pooling
from dcml_tune.search import __main__ as search
from dcml_tune.search.flags import read_command_line
from dcml_tune.search.plan import given_plan
from dcml_tune.train import main as train
from dcml_tune.training.devices import is_deterministic, set_arithmetic
from dcml_tune.training.prefixes import PrefixStore
from dcml_tune.training.trainer import Trainer
from dcml_tune.utils.files import read_checksummed
from dcml_tune.utils.precision import fast_products
from trainables import DivideAndConquer, Run

SMALL = {
    "dataset": "folder", "train_classes": 16, "arch": "test_resnet", "weights": "none", "sz_resize": 32, "sz_crop": 32,
    "sz_embedding": 8, "batch_size": 8, "num_samples_per_class": 2, "batch_sampler": "adaptbalanced",
    "sampler": "distanceweighted", "nb_epochs": 3, "nb_clusters": 2, "mod_epoch": 1, "mod_epoch_freeze": 0,
    "force_full_embedding_epoch": 2,
}  # fmt: skip
CRITERIA = [
    "margin", "triplet", "triplet_semihard", "triplet_all", "npairs", "kantorov_margin", "multi_similarity", "supcon",
    "contrastive", "proxy_anchor", "normalized_softmax", "arcface",
]  # fmt: skip
REFUSED = {
    "adaptive_avg_pool2d_backward", "_adaptive_avg_pool2d_backward", "adaptive_max_pool2d_backward", "histc", "put_",
    "avg_pool3d_backward", "fractional_max_pool2d_backward", "max_unpool2d", "upsample_bilinear2d_backward",
    "upsample_bicubic2d_backward", "reflection_pad2d_backward", "nll_loss2d_forward", "grid_sampler_2d_backward",
    "_ctc_loss_backward", "median", "kthvalue",
}  # fmt: skip
"""Operations that `torch.use_deterministic_algorithms` refuses on a GPU: its documentation, and the strings of
libtorch_cuda 2.14.1."""


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """Leaves the process as it was."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    yield
    torch.use_deterministic_algorithms(False)
    cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32 = before
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Image stores that all trainings share."""
    return tmp_path_factory.mktemp("stores")


class Operations(TorchDispatchMode):
    """Collects the names of the operations that are called."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("settings", "deterministic", "expected"),
    [
        ({}, False, (True, False, True)),
        ({"amp": False}, False, (True, False, False)),
        ({"batch_sampler": "adaptbalanced", "small_class_action": "smaller_batch"}, False, (False, False, True)),
        ({}, True, (False, True, True)),
        ({"amp": False}, True, (False, True, False)),
    ],
)
def test_what_is_set(settings, deterministic, expected):
    """benchmark, deterministic and TF32 of cuDNN; with --deterministic torch and cuBLAS, too. The next trial takes it back."""
    config, cudnn = TrialConfig(**settings), torch.backends.cudnn
    set_arithmetic(config, deterministic=deterministic)
    assert (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32) == expected
    assert is_deterministic() == torch.are_deterministic_algorithms_enabled() == deterministic
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if deterministic else None)
    set_arithmetic(TrialConfig())
    assert not is_deterministic()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_each_loss_trains_with_deterministic_algorithms(criterion, folder, stores):
    """Clustering, updates and measures use no operation that torch refuses on a GPU."""
    short = {"train_classes": 8, "nb_epochs": 2, "force_full_embedding_epoch": None}
    config = TrialConfig(**{**SMALL, **short}, criterion=criterion, dataset_dir=str(folder))
    set_arithmetic(config, deterministic=True)
    trainer = Trainer(config, stores=stores, device="cpu")
    with Operations() as called:
        for _ in range(config.nb_epochs):
            trainer.run_epoch()
    assert {"convolution_backward", "mm"} <= called.names, "the backward pass was not seen"
    assert called.names & REFUSED == set()


def test_all_losses_are_tried():
    """A new one comes with a case here."""
    kind = TrialConfig.model_fields["criterion"].annotation
    assert set(CRITERIA) == set(getattr(kind, "__args__", None) or kind.__origin__.__args__)


@pytest.mark.parametrize("name", ["avg", "max", "avg+max", "gem"])
def test_each_pooling_is_deterministic(name):
    """Its backward pass is none that torch refuses; the largest value is that of torch's own layer, ties included."""
    maps = torch.randint(-2, 3, (4, 3, 5, 5)).float().contiguous(memory_format=torch.channels_last).requires_grad_()
    with Operations() as called:
        pooled = pooling(name)(maps)
        (grad,) = torch.autograd.grad(pooled.square().sum(), maps)
    assert called.names & REFUSED == set()
    mean, largest = F.adaptive_avg_pool2d(maps, 1).flatten(1), F.adaptive_max_pool2d(maps, 1).flatten(1)
    if name in ("max", "avg+max"):
        expected = largest if name == "max" else mean + largest
        assert torch.equal(pooled, expected)
        assert torch.equal(grad, torch.autograd.grad(expected.square().sum(), maps)[0])


def test_products_are_fast_inside_the_backbone_alone(monkeypatch):
    """On a GPU with amp, in evaluation; the embedding layer has full precision. On the CPU nothing changes."""
    seen = []
    model = MaskedEmbedder(TrialConfig(**{**SMALL, "nb_clusters": 1, "force_full_embedding_epoch": None})).eval()
    for part in (model.backbone, model.embedding):
        part.register_forward_hook(lambda *_: seen.append(torch.get_float32_matmul_precision()))
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    model(images)
    monkeypatch.setattr("dcml_tune.models.embedder.fast_products", lambda fast: fast_products(True))
    model(images)
    assert seen == ["highest", "highest", "high", "highest"]
    with fast_products(False):
        assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("deterministic", [True, False])
def test_it_travels_with_a_trial(deterministic, folder, stores):
    """And it is a part of the key under which epochs are shared."""
    torch.use_deterministic_algorithms(not deterministic)
    run = Run(stores=str(stores), deterministic=deterministic)
    trial = DivideAndConquer({**SMALL, "dataset_dir": str(folder), "run": run.as_dict()})
    assert is_deterministic() == deterministic
    keys = []
    for each in (True, False):
        torch.use_deterministic_algorithms(each)
        keys.append(PrefixStore(stores / "prefixes", trial.trainer).key(1))
    assert keys[0] != keys[1]


def test_a_search_records_it(folder, tmp_path):
    """A resume takes it over, and refuses it where the search began without."""
    words = ["folder", "--dataset-dir", str(folder), "--output-dir", str(tmp_path)]
    words += [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items() if name != "dataset"]
    for name, given in (("with", ["--deterministic"]), ("without", [])):
        plan = given_plan(read_command_line([*words, "--name", name, *given]))
        assert plan.runs.run().deterministic == bool(given)
        plan.begin().release()
        assert read_checksummed(tmp_path / name / "search.json")["flags"]["deterministic"] == bool(given)
    again = ["--output-dir", str(tmp_path), "--dry-run"]
    assert search.main(["--resume", "with", "--deterministic", *again]) == 0
    with pytest.raises(ValueError, match="--deterministic True: search without began with False"):
        search.main(["--resume", "without", "--deterministic", *again])


def test_a_run_resumes_with_it(folder, tmp_path, monkeypatch):
    """`train --deterministic`, interrupted after an epoch: the rest has the same algorithms."""
    from dcml_tune.utils.signals import SearchStopped

    real, seen = Trainer.epoch_steps, []

    def epoch_steps(self):
        seen.append(is_deterministic())
        if len(seen) == 2:
            raise SearchStopped("SIGTERM")
        return (yield from real(self))

    monkeypatch.setattr(Trainer, "epoch_steps", epoch_steps)
    settings = {**SMALL, "dataset_dir": folder}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items() if name != "dataset"]
    output = ["--output-dir", str(tmp_path / "runs")]
    assert train(["folder", "--name=r", "--deterministic", *words, *output]) == 3
    torch.use_deterministic_algorithms(False)
    assert train(["--resume", "r", *output]) == 0
    assert seen == [True] * 4
