"""The authors' sample command, and the search space around it that the five published data sets share.

The README of the authors' code of "Improving Deep Metric Learning by Divide and Conquer" (TPAMI 2021) gives one command,
for Stanford Online Products. Trial 0 of a search runs its settings. For the other data sets only the number of clusters
differs; that the other values suit them is our choice and is not published.

Four settings vary, those of the method: into how many clusters the data is divided, how often, and how the masks train.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from search_spaces.published import as_text
from search_spaces.space import Choice, Float, Int, SearchSpace, When

_SAMPLE_COMMAND: dict[str, Any] = {
    "sz_embedding": 512,
    "mod_epoch": 2,
    "nb_clusters": 32,
    "nb_epochs": 180,
    "batch_size": 80,
    "num_samples_per_class": 2,
    "mod_epoch_freeze": 1,
    "sampler": "distanceweighted",
    "weight_decay": 1e-4,
    "batch_sampler": "adaptbalanced",
    "force_full_embedding_epoch": 80,
    "mask_lr_mult": 100.0,
    "masking_lambda": 0.01,
    "mask_wd_mult": 1.0,
    "base_lr": 1e-5,
}
"""Settings of the authors' sample command where they differ from the defaults of `TrialConfig`, or matter here."""

MASK_DOMAINS = {
    "masking_lambda": Float(1e-3, 1.0, log=True),
    "mask_lr_mult": Float(1.0, 1000.0, log=True),
}
"""How the masks train. Each range holds the value of the sample command and the default of the authors' flag."""

MASK_REASONS = {
    "masking_lambda": "published: 0.01 and, as the flag's default, 1",
    "mask_lr_mult": "published: 100 and, as the flag's default, 1",
}

DIVISION_CONDITIONS = {
    name: (When("nb_clusters", above=1),) for name in ("mod_epoch", "masking_lambda", "mask_lr_mult")
}
"""With one cluster there is no division, and the only mask is not trained."""


def published_space(dataset: str, *, nb_clusters: int, choices: Iterable[int], why: str) -> SearchSpace:
    """The search space of a published data set.

    Args:
        dataset: its name.
        nb_clusters: number of clusters of the published point.
        choices: numbers of clusters to search.
        why: the reason for these choices.
    """
    return SearchSpace(
        name=dataset,
        published={"dataset": dataset, **_SAMPLE_COMMAND, "nb_clusters": nb_clusters},
        domains={"nb_clusters": Choice(choices), "mod_epoch": Int(2, 8), **MASK_DOMAINS},
        why={
            "nb_clusters": why,
            "mod_epoch": "published: 2; 8 epochs still end the division well before the full-embedding phase at epoch 80",
            **MASK_REASONS,
        },
        references=as_text(dataset),
        conditions=DIVISION_CONDITIONS,
    )
