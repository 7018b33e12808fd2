"""Evaluator: measures of a trial's model on held-out classes, and on the test classes through the ledger."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dcml_tune import data
from dcml_tune.config.trial import TrialConfig
from dcml_tune.data import EvaluationSet, ImageList, ImageStore, remains
from dcml_tune.data.datasets.vid import has_official_protocol, official_name
from dcml_tune.metrics.protocols import EmbeddedOnce, official_measures
from dcml_tune.metrics.retrieval import retrieve
from dcml_tune.models.embedder import MaskedEmbedder
from dcml_tune.runs.hits import QueryHits
from dcml_tune.runs.ledger import Ledger
from dcml_tune.training.embedding import embed
from dcml_tune.training.ranks.exchange import ALONE, Ranks
from dcml_tune.training.trial_data import Indices, TrialData
from dcml_tune.utils.files import CorruptFileError, read_checksummed, write_checksummed
from dcml_tune.utils.locks import SharedLock
from dcml_tune.utils.stored import Finite, Stored


class _Measures(Stored):
    """untrained-KEY.json: measures by name."""

    __pydantic_extra__: dict[str, Finite] = Field(init=False)


@dataclass(kw_only=True)
class Evaluator:
    """Measures the model of one trial."""

    model: MaskedEmbedder
    config: TrialConfig
    data: TrialData
    ledger: Ledger
    """The ledger of the test classes."""
    name: str
    """Name of the run in the ledger."""
    note: str = ""
    """Why it scores the test classes, for the ledger."""
    ranks: Ranks = ALONE
    """The ranks that embed images, of which this is rank 0."""
    test_scored_before: int | None = None
    """How often the test classes had been scored, by the ledger, when `test` was last called; None before that."""
    hits: QueryHits | None = None
    """What the queries found when the model was last measured, on the first test set if there are several."""
    _test_stores: dict[ImageList, ImageStore] = field(default_factory=dict)

    @property
    def compares(self) -> bool:
        """Whether there are classes that trials are compared on."""
        return self.data.validation is not None or self.config.protocol == "paper"

    def compare(self, *, penultimate: bool = False) -> dict[str, float]:
        """Measure the model on the classes that trials are compared on.

        Args:
            penultimate: measure penultimate features instead of the embedding.

        Returns:
            `val/...` on the held-out classes; `paper/...` on the test classes under protocol=paper, as the original
            does; empty when nothing is held out.
        """
        if self.config.protocol == "paper":
            found = self.test(penultimate=penultimate)
            return {name.replace("test", "paper", 1): value for name, value in found.items()}
        queries, gallery = self.data.validation, self.data.gallery
        if queries is None:
            return {}
        labels = self.data.labels
        embeddings = self._embed(self.data.views, queries, penultimate)
        retrieved = retrieve(
            embeddings,
            labels[queries],
            self.data.ks,
            gallery=None if gallery is None else self._embed(self.data.views, gallery, penultimate),
            gallery_labels=None if gallery is None else labels[gallery],
        )
        found, self.hits = retrieved.measures, QueryHits(classes=labels[queries], hits=retrieved.hits)
        if has_official_protocol(self.config.dataset):  # which draws galleries: the same ones for every epoch and trial
            drawn = official_measures(embeddings, labels[queries], self.data.ks)
            found |= {name: value for name, value in drawn.items() if name in found}
        return {f"val/{name}": value for name, value in found.items()}

    def untrained(self, *, is_untrained: bool) -> dict[str, float]:
        """Measures of the penultimate features of the untrained network on the classes that trials are compared on.

        All trials of a search have the same ones, so they are cached where all nodes find them. They do not depend on
        the embedding layer, so not on `init_method` either.

        Args:
            is_untrained: the model has the weights that it started from; it must, where nothing is cached.
        """
        path = self.data.stores.make_common() / f"untrained-{self._untrained_key()}.json"
        with SharedLock(Path(f"{path}.lock")):
            try:
                return cast("dict[str, float]", read_checksummed(path, _Measures))
            except CorruptFileError:
                assert is_untrained, "only a network that was not trained can be measured as such"
                measures = self.compare(penultimate=True)
                write_checksummed(path, measures)
                return measures

    def _untrained_key(self) -> str:
        config = self.config
        return data.fingerprint(
            self.data.views.key,
            self.model.masks.device.type,
            config.arch,
            config.weights,
            config.features_pooling,
            config.protocol,
            config.held_out_share,
            config.split_seed,
            *([config.fold] if config.fold else []),
        )

    def test(self, *, penultimate: bool = False) -> dict[str, float]:
        """Measure the model on the test classes. No other code of a search scores a test image.

        The ledger gets an entry before any image is scored.

        Args:
            penultimate: measure penultimate features instead of the embedding (for the untrained network).

        Raises:
            OSError, StorageError: if the ledger cannot be written; then no test image was scored.
        """
        dataset = self.data.dataset
        self.test_scored_before = self.ledger.enter(
            run=self.name, dataset=dataset.name, test_set=dataset.test_fingerprint, note=self.note
        )
        measures: dict[str, float] = {}
        embedded = EmbeddedOnce(lambda images: self._embed_list(images, penultimate))
        for number, test in enumerate(dataset.tests):
            prefix = "test" if number == 0 else f"test_{test.name}"
            found, hits = self._test_set(test, embedded)
            measures |= {f"{prefix}/{name}": value for name, value in found.items()}
            if number == 0:
                self.hits = hits
        return measures

    def _test_set(self, test: EvaluationSet, embedded: EmbeddedOnce) -> tuple[dict[str, float], QueryHits]:
        (queries, labels), *gallery = (embedded(images) for images in test.lists)
        kept = remains.matched_queries(test, labels, gallery[0][1] if gallery else None)
        queries, labels = queries[torch.from_numpy(kept).to(queries.device)], labels[kept]
        retrieved = retrieve(
            queries,
            labels,
            test.ks,
            gallery=gallery[0][0] if gallery else None,
            gallery_labels=gallery[0][1] if gallery else None,
        )
        found = retrieved.measures
        if has_official_protocol(self.config.dataset):
            drawn = official_measures(queries, labels, test.ks)
            found |= {official_name(name): value for name, value in drawn.items()}
        return found, QueryHits(classes=labels, hits=retrieved.hits)

    def _embed_list(self, images: ImageList, penultimate: bool) -> tuple[Tensor, Indices]:
        """Embed a list of test images; each store is opened once per trial."""
        if images not in self._test_stores:
            self._test_stores[images] = data.open_store(self.config, images, self.data.stores)
        store = self._test_stores[images]
        rows = np.arange(len(store.kept), dtype=np.int64)
        return self._embed(store, rows, penultimate), images.labels[store.kept]

    def _embed(self, store: ImageStore, rows: Indices, penultimate: bool) -> Tensor:
        return embed(self.model, store, rows, penultimate=penultimate, ranks=self.ranks)
