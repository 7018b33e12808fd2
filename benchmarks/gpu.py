"""Speed of one GPU: training steps, epochs, passes over the images, k-means, evaluation, and several trials at once.

    python benchmarks/gpu.py                                     # ResNet-50 at 224, batches of 80: about 10 minutes
    python benchmarks/gpu.py --device cpu --arch resnet18 --sz-crop 32 --batch-size 8 --images 96   # does it run?

Images are synthetic and weights random. Programs that are compared run alternately. A row has the medians of the
repeats, and in brackets the smallest and the largest ratio. The memory of a row is the largest amount that torch
allocated for tensors during this part; for several trials at once it is that of the trial with the largest amount.

The program needs torch, torchvision, NumPy, SciPy, Pillow, pydantic, filelock, safetensors and rich, timm for the
networks of timm, and Faiss for the row of Faiss. `--limit` is computed, not measured: the number of images per second
for which the memory bandwidth of an H100 suffices, for the forward and backward passes of ResNet-50 at 224 pixels in
bfloat16, if each layer reads and writes all of its maps.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from gpu_epochs import epochs
from gpu_sharing import capped, together
from gpu_table import Memory, Table
from measure import alternate
from torch import nn

from dcml_tune.clustering.kmeans import check_backend, kmeans
from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.metrics.retrieval import retrieval_measures
from dcml_tune.search.gpu_probe.trial import SyntheticTrial

REPEATS = 5


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--weights", default="none")
    parser.add_argument("--batch-size", type=int, default=80)
    parser.add_argument("--sz-crop", type=int, default=224)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=5.0, help="seconds of each timed part")
    parser.add_argument("--images", type=int, default=4000, help="number of images in the image store")
    parser.add_argument("--limit", type=float, default=8000.0, help="images/s by memory traffic, computed for an H100")
    parser.add_argument("--cluster", type=int, nargs=3, default=(60_000, 2048, 32), metavar=("IMAGES", "DIM", "K"))
    parser.add_argument(
        "--evaluate", type=int, nargs=3, default=(60_500, 512, 11_316), metavar=("IMAGES", "DIM", "CLASSES")
    )
    parser.add_argument(
        "--at-once", type=int, nargs="+", default=(1, 2, 4), help="numbers of trials at once; the first is 1"
    )
    return parser.parse_args()


def setting(given: argparse.Namespace) -> TrialConfig:
    """The published setting of Cars in what costs time, with all learners from the first epoch."""
    return TrialConfig(
        arch=given.arch, weights=given.weights, batch_size=given.batch_size, num_samples_per_class=2,
        sz_crop=given.sz_crop, sz_resize=round(given.sz_crop * 256 / 224), nb_clusters=4, hierarchy_method="none",
        sampler="distanceweighted", batch_sampler="adaptbalanced", mod_epoch=2, mod_epoch_freeze=1,
    )  # fmt: skip


# -- steps on synthetic images -------------------------------------------------------------------------


def unfold(network: nn.Module) -> None:
    """Let batch-norm be what it was before `folding`."""
    for module in network.modules():
        if hasattr(module, "unfolded"):
            module.__class__ = module.unfolded


VARIANTS: dict[str, Callable[[SyntheticTrial], object]] = {
    "backbone trained": lambda trial: trial.freeze(False),
    "backbone frozen": lambda trial: trial.freeze(True),
    # For information:
    "batch-norm not folded": lambda trial: unfold(trial.model.backbone),
    "cudnn.benchmark": lambda trial: None,
    "--compile on": lambda trial: trial.model.compile_backbone(),
    "--compile on, backbone frozen": lambda trial: (trial.model.compile_backbone(), trial.freeze(True)),
}


def steps(given: argparse.Namespace, device: torch.device, table: Table) -> dict[str, list[float]]:
    """Images a second of the training step and its variants; those of the first two are returned."""
    works: dict[str, Callable[[], None]] = {}
    memory: dict[str, int | None] = {}
    images: dict[str, int] = {}
    for name, change in VARIANTS.items():
        if not table.on_gpu and not name.startswith("backbone"):
            table.add(f"step, {name}", "no GPU")
            continue
        taken, trial = Memory(device), SyntheticTrial(setting(given), device)
        change(trial)
        try:
            run(trial, 5, name)
        except Exception as error:  # of a compiler, which nothing else needs
            table.add(f"step, {name}", f"failed: {str(error).splitlines()[0]:.60}")
            continue
        (seconds,) = alternate({name: partial(run, trial, 2, name)}, 1)[name]
        count = max(2, round(2 * given.seconds / REPEATS / seconds))
        memory[name], images[name] = taken.peak(), count * given.batch_size
        works[name] = partial(run, trial, count, name)
        if name == "backbone trained":
            launched(trial, table)
    taken_s = alternate(works, REPEATS)
    torch.backends.cudnn.benchmark = False
    rates = {name: [images[name] / each for each in taken_s[name]] for name in works}
    trained = rates["backbone trained"]
    for name, values in rates.items():
        table.rates(f"step, {name}", values, None if values is trained else trained, memory=memory[name])
    table.rates("step, of the limit by memory traffic", trained, [given.limit] * len(trained))
    return rates


def run(trial: SyntheticTrial, count: int, name: str) -> None:
    torch.backends.cudnn.benchmark = name == "cudnn.benchmark"
    trial.steps(count)


def launched(trial: SyntheticTrial, table: Table) -> None:
    """How much of a step's time the host needs to launch it: near all of it, and the GPU waits for the host."""
    host, whole = [], []
    for _ in range(REPEATS):
        start = time.perf_counter()
        trial.step()
        host.append(1000 * (time.perf_counter() - start))
        trial.wait()
        whole.append(1000 * (time.perf_counter() - start))
    table.rates("of a step, until it is launched", host, whole, unit="ms")


# -- what is computed on embeddings --------------------------------------------------------------------


def grouped(images: int, dim: int, groups: int, device: torch.device) -> tuple[torch.Tensor, np.ndarray]:
    """Unit vectors near their group's direction, and the groups."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(images) * groups // images
    x = torch.randn(groups, dim, generator=generator)[labels] + 2 * torch.randn(images, dim, generator=generator)
    return nn.functional.normalize(x, dim=1).to(device), labels.numpy()


def arithmetic(given: argparse.Namespace, device: torch.device, table: Table) -> None:
    """Seconds of k-means and of a retrieval evaluation."""
    x, _ = grouped(*given.cluster, device)
    part = f"k-means {' x '.join(map(str, given.cluster))}"
    for backend in ("torch", "faiss-gpu"):
        try:
            check_backend(backend)
        except SettingError:
            table.add(f"{part}, {backend}", "no GPU that Faiss can use")
            continue
        work = partial(kmeans, x, given.cluster[2], seed=0, backend=backend)
        timed(f"{part}, {backend}", table, device, work)
    del x, work
    embeddings, labels = grouped(*given.evaluate, device)
    part = f"evaluation {' x '.join(map(str, given.evaluate[:2]))}"
    timed(part, table, device, partial(retrieval_measures, embeddings, labels, (1, 10, 100, 1000)))


def timed(part: str, table: Table, device: torch.device, work: Callable[[], object]) -> None:
    work()
    taken = Memory(device)
    table.rates(part, alternate({part: work}, 3)[part], unit="s", memory=taken.peak())


def main() -> None:
    given = arguments()
    device = torch.device(given.device)
    table = Table(on_gpu=device.type == "cuda")
    # First those with processes of their own: this one has taken nothing of the GPU yet.
    sentence = together(setting(given), given.at_once, given.device, given.seconds, table)
    capped(table)
    synthetic = steps(given, device, table)
    epochs(setting(given), given.images, device, table, synthetic)
    arithmetic(given, device, table)
    name = torch.cuda.get_device_name() if table.on_gpu else platform.processor() or "CPU"
    table.show(f"{name}, torch {torch.__version__}: {given.arch}, {given.sz_crop} px, batches of {given.batch_size}")
    print(f"--gpus-per-trial auto would take {sentence}")


if __name__ == "__main__":
    main()
