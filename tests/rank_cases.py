"""What two ranks compute together, and what one process does alone: `python rank_cases.py DIRECTORY` is rank 1."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dcml_tune.config.schedule import EpochPlan
from dcml_tune.config.trial import TrialConfig
from dcml_tune.training.ranks.exchange import RankError
from dcml_tune.training.ranks.processes import meet
from dcml_tune.training.seeding import epoch_seed
from dcml_tune.training.step import TrainStep
from dcml_tune.training.updates import statistics

LOSSES = {
    "margin": {"sampler": "distanceweighted", "lr_beta": 0.1, "nu": 0.1},
    "margin without masks' overlap": {"sampler": "distanceweighted", "masking_lambda": 0.0},
    "margin, easypeasy": {"sampler": "easypeasy"},
    "triplet": {"sampler": "RPSHN", "criterion": "triplet"},
    **{
        name: {"criterion": name}
        for name in (
            "triplet_semihard", "triplet_all", "npairs", "kantorov_margin", "multi_similarity", "supcon", "contrastive",
            "proxy_anchor", "normalized_softmax", "arcface",
        )
    },
}  # fmt: skip
PHASES = {
    "clusters": {},
    "frozen backbone": {"backbone_frozen": True},
    "full embedding": {"full_embedding": True},
    "one cluster": {"nb_clusters": 1},
    "a rank without a batch": {},
}
CASES = {(loss, "clusters"): LOSSES[loss] for loss in LOSSES} | {
    (loss, phase): LOSSES[loss] for loss in ("margin", "proxy_anchor") for phase in PHASES
}
CASES["fixed masks", "clusters"] = {"fixed_mask": True}
CASES["learned statistics", "clusters"] = {"bn_learnable": True}


def step_of(settings):
    config = TrialConfig(
        arch="test_resnet", weights="none", sz_resize=32, sz_crop=32, batch_size=8, num_samples_per_class=2,
        sz_embedding=16, nb_clusters=4, hierarchy_method="none", features_pooling="gem",
        **{"masking_lambda": 0.5, **settings},
    )  # fmt: skip
    return TrainStep(config, 4, torch.device("cpu"))


def backward(step, phase, rank):
    """The gradients of the batch of a rank: other images, and another learner, than those of the other rank."""
    plan = replace(EpochPlan.at(0, step.config), **{"backbone_frozen": False, **PHASES[phase]})
    step.set_trainable(plan)
    images = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(rank))
    generator = torch.Generator().manual_seed(epoch_seed(0, 0, rank))
    torch.manual_seed(rank)
    step.gradients(images, np.arange(8) // 2, rank, plan, generator)


def gradients(step):
    """Copies of all gradients; None where the optimiser skips the parameter."""
    return [None if each.grad is None else each.grad.clone() for each in step.parameters()]


def together(ranks):
    """Case -> the gradients that the ranks compute, after an exchange."""
    found = {}
    for (loss, phase), settings in CASES.items():
        step = step_of(settings)
        if (phase == "a rank without a batch") and ranks.rank == 1:
            backward(step, phase, 1)  # only so that the same parameters are trained
            step.optimizer.zero_grad()
        else:
            backward(step, phase, ranks.rank)
        ranks.average_gradients(step.parameters(), 1 if phase == "a rank without a batch" else 2)
        found[loss, phase] = gradients(step)
    return found


def unequal(ranks):
    """The error where the ranks have other parameters; a difference of rounding is none."""
    assert 0 < ranks.check_equal([torch.tensor([1.0, 1e-5 * ranks.rank])], "the parameters") < 2e-5
    try:
        ranks.check_equal([torch.tensor([1.0, 0.1 * ranks.rank])], "the parameters")
    except RankError as error:
        return str(error)


def exchanged(ranks):
    """What passes between the ranks in other ways: an order with tensors, rows that are joined."""
    tensors = {
        "a": torch.arange(6.0).view(2, 3),
        "b": torch.tensor([True, False]),
        "c": torch.tensor(7),
        "d": torch.empty(0),
    }
    heard = ({"do": "x", "é": [1, None]}, tensors)
    if ranks.rank == 0:
        ranks.tell(*heard, torch.device("cpu"))
    else:
        heard = ranks.hear(torch.device("cpu"))
    rows = torch.full((3 - ranks.rank, 2), float(ranks.rank))
    layers = torch.nn.Sequential(torch.nn.BatchNorm2d(2), torch.nn.BatchNorm1d(3))
    for number, values in enumerate(statistics(layers)):
        values.fill_(ranks.rank + number)
    ranks.average(statistics(layers))
    return heard, ranks.gather(rows, [3, 2]), [values.unique().item() for values in statistics(layers)]


def all_of(ranks):
    return {"gradients": together(ranks), "unequal": unequal(ranks), "exchanged": exchanged(ranks)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.save(all_of(meet(Path(sys.argv[1]), 1, 2, "cpu")), Path(sys.argv[1]) / "rank-1.pt")
