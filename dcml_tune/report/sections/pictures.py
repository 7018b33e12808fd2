"""Pictures: queries of the held-out classes with their neighbours, and images of each cluster.

Only images of training classes are opened, held-out or not. Images of test classes are never opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dcml_tune import data
from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.models import embedder
from dcml_tune.models.embedder import MaskedEmbedder
from dcml_tune.report.figures import Album, Pixels
from dcml_tune.report.page import Figure, Section, percent
from dcml_tune.report.search_data import SearchData
from dcml_tune.report.sections.division import read_division
from dcml_tune.report.sheets import CELL, GREEN, GREY, RED, blank, label, thumbnail, with_head
from dcml_tune.runs.stores import Stores
from dcml_tune.training.embedding import embed
from dcml_tune.training.trial_data import TrialData
from dcml_tune.utils.machine import usable_cores

Indices = npt.NDArray[np.int64]
Hits = npt.NDArray[np.bool_]

_QUERIES, _NEIGHBOURS = 12, 5
_MOST_IMAGES = 3000  # most images of held-out classes that are embedded
_PER_CLUSTER, _MOST_CLUSTERS = 6, 32
_GAP = 18  # pixels
_SEED = 0


def pictures(search: SearchData, album: Album) -> Section:
    """Queries with their neighbours before and after training, and images of each cluster."""
    section = Section(title="Pictures")
    if search.best is None or search.model is None:
        section.say("The model of the best trial was not kept, or there is none yet, so nothing can be embedded.")
        return section
    stores = Stores.below(search.output, search.record.asked["flags"].get("scratch"))
    if not _is_stored(search.best.config, stores):
        section.say(
            f"{stores.directory} does not hold the images of this search, and a report does not build an image store."
        )
        return section
    opened = TrialData.open(search.best.config, stores)
    if opened.validation is None:
        section.say("No classes are held out (paper protocol), and images of test classes are not shown.")
    else:
        with _all_threads():
            section.parts.append(_neighbours(search, search.model, opened, album))
    _clusters(section, search, opened, album)
    return section


def _is_stored(config: TrialConfig, stores: Stores) -> bool:
    """Whether the image stores of the training images exist."""
    images = data.load(config).train
    kinds: tuple[data.Kind, ...] = (config.image_store, "evaluation")
    sizes = {"sz_resize": config.sz_resize, "sz_crop": config.sz_crop}
    return all(data.needed_bytes(images, stores, kind=kind, **sizes) == 0 for kind in kinds)


@contextmanager
def _all_threads() -> Iterator[None]:
    """Within this context, let torch use all cores of this process."""
    before = torch.get_num_threads()
    torch.set_num_threads(usable_cores())
    try:
        yield
    finally:
        torch.set_num_threads(before)


# -- queries and their neighbours --------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Found:
    """The neighbours of all queries by one network."""

    neighbours: Indices
    """Q x 5: rows of the image store, nearest first."""
    right: Hits
    """Q x 5: whether the neighbour has the class of the query."""


def _neighbours(search: SearchData, trained: Path, opened: TrialData, album: Album) -> Figure:
    assert search.best is not None
    queries, gallery = _shown_rows(opened)
    device = torch.device("cuda" if torch.cuda.is_available() and search.status != "running" else "cpu")
    networks = [(MaskedEmbedder(search.best.config), True), (embedder.load(trained), False)]
    before, after = (
        _find_neighbours(network.to(device), opened, queries, gallery, penultimate=penultimate)
        for network, penultimate in networks
    )
    labels = opened.labels
    answerable = np.array([_has_answer(opened, row, queries, gallery) for row in queries])
    chosen = _choose(before.right[:, 0] != after.right[:, 0], answerable)
    images = opened.views.array
    sheet = _sheet(images, queries[chosen], [_rows(before, chosen), _rows(after, chosen)])
    whole = len(queries) == len(opened.validation if opened.validation is not None else [])
    classes = len(np.unique(labels[queries]))
    recall = [percent(float(found.right[:, 0].mean())) for found in (before, after)]
    caption = (
        "Look for rows that change from red to green, and for what the red ones have in common. Searched were "
        f"{len(queries):,} held-out images of {classes:,} classes "
        f"({'all of them' if whole else 'whole classes, sampled with a fixed seed'}); the nearest is right for "
        f"{recall[0]} of them with the untrained network and for {recall[1]} with trial {search.best.key}. Half of the queries "
        "are sampled at random; the others (last rows) are among those on which the two networks differ."
    )
    title = "Queries and their five nearest neighbours, before and after training"
    return album.keep_picture(sheet, "neighbours", title=title, caption=caption)


def _shown_rows(opened: TrialData) -> tuple[Indices, Indices | None]:
    """Rows of the queries, and of the gallery if there is one: whole classes, at most 3,000 images."""
    assert opened.validation is not None
    queries, gallery, labels = opened.validation, opened.gallery, opened.labels
    rows = queries if gallery is None else np.concatenate([queries, gallery])
    classes, counts = np.unique(labels[rows], return_counts=True)
    order = np.random.default_rng(_SEED).permutation(len(classes))
    kept = classes[order[np.cumsum(counts[order]) <= _MOST_IMAGES]]
    if not len(kept):
        raise SettingError(
            f"a held-out class has more than {_MOST_IMAGES:,} images, the most that are embedded; leave the pictures out with --no-pictures"
        )
    return queries[np.isin(labels[queries], kept)], None if gallery is None else gallery[np.isin(labels[gallery], kept)]


def _find_neighbours(
    network: MaskedEmbedder, opened: TrialData, queries: Indices, gallery: Indices | None, *, penultimate: bool
) -> _Found:
    """Find the nearest images of the gallery or, without a gallery, of the other queries."""
    vectors = embed(network, opened.views, queries, penultimate=penultimate)
    others = vectors if gallery is None else embed(network, opened.views, gallery, penultimate=penultimate)
    near = _nearest(vectors, others, without_self=gallery is None)
    rows = (queries if gallery is None else gallery)[near]
    return _Found(neighbours=rows, right=opened.labels[rows] == opened.labels[queries][:, None])


def _nearest(queries: Tensor, gallery: Tensor, *, without_self: bool) -> Indices:
    """Q x 5: indices into the gallery by decreasing cosine; `without_self` excludes the index of the query."""
    similarity = queries @ gallery.T
    if without_self:
        similarity.fill_diagonal_(-torch.inf)
    count = min(_NEIGHBOURS, len(gallery) - int(without_self))
    return similarity.topk(count, dim=1).indices.cpu().numpy()


def _has_answer(opened: TrialData, row: int, queries: Indices, gallery: Indices | None) -> bool:
    """Whether a query has another image of its class to be found."""
    same = opened.labels[queries if gallery is None else gallery] == opened.labels[row]
    return int(same.sum()) > int(gallery is None)


def _choose(differ: Hits, answerable: Hits) -> Indices:
    """Choose half of the queries at random, and half among those on which the networks differ, as far as there are any."""
    rng = np.random.default_rng(_SEED)
    order = rng.permutation(np.flatnonzero(answerable))
    telling = order[differ[order]][: _QUERIES // 2]
    rest = order[~np.isin(order, telling)][: _QUERIES - len(telling)]
    return np.concatenate([rest, telling])


def _rows(found: _Found, chosen: Indices) -> _Found:
    return _Found(neighbours=found.neighbours[chosen], right=found.right[chosen])


# -- sheets ------------------------------------------------------------------------------------------------


def _sheet(images: Pixels, queries: Indices, networks: list[_Found]) -> Pixels:
    """A row for each query: the query, then its neighbours by each network."""
    rows = []
    for number, query in enumerate(queries):
        blocks = [thumbnail(images[query], GREY)]
        for found in networks:
            near = zip(found.neighbours[number], found.right[number], strict=True)
            blocks += [
                blank(blocks[0], _GAP),
                *(thumbnail(images[row], GREEN if hit else RED, not hit) for row, hit in near),
            ]
        rows.append(np.concatenate(blocks, axis=1))
    sheet = np.concatenate(rows)
    cell = CELL
    second = cell + _GAP + networks[0].neighbours.shape[1] * cell + _GAP
    heads = {0: "query", cell + _GAP: "untrained network, the nearest first", second: "best trial, the nearest first"}
    return with_head(sheet, heads)


# -- clusters ----------------------------------------------------------------------------------------------


def _clusters(section: Section, search: SearchData, opened: TrialData, album: Album) -> None:
    found = read_division(search)
    if found is None:
        section.say("The division of the best trial was not kept, so there are no pictures of its clusters.")
        return
    tensors, clusters = found
    partition, rows = tensors["partition"].numpy(), tensors["rows"].numpy()
    shown = [number for number in np.argsort(-np.bincount(partition[partition >= 0], minlength=clusters), kind="stable")
             if (partition == number).any()][:_MOST_CLUSTERS]  # fmt: skip
    rng = np.random.default_rng(_SEED)
    sheet = np.concatenate(
        [_cluster(opened.views.array, number, rows[partition == number], rng) for number in sorted(shown)]
    )
    title = f"{_PER_CLUSTER} images of each cluster, chosen at random"
    caption = (
        f"Look for what the images of a row have in common and those of other rows do not: its learner specialises in that "
        f"({len(shown)} of {clusters} clusters{', the largest ones' if len(shown) < clusters else ''})."
    )
    section.parts.append(album.keep_picture(with_head(sheet, {0: title}), "clusters", title=title, caption=caption))


def _cluster(images: Pixels, number: int, rows: Indices, rng: np.random.Generator) -> Pixels:
    """A row of a cluster's images."""
    chosen = rng.permutation(rows)[:_PER_CLUSTER]
    blocks = [thumbnail(images[row], GREY) for row in chosen]
    blocks += [blank(blocks[0], blocks[0].shape[1])] * (_PER_CLUSTER - len(blocks))
    return np.concatenate([label(f"{number}: {len(rows):,} images", len(blocks[0])), *blocks], axis=1)
