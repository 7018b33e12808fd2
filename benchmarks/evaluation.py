"""Speed and memory of the retrieval measures, compared with a Faiss search that computes no measures.

    python benchmarks/evaluation.py [--images 60500] [--classes 11316] [--ks 1 10 100] [--repeats 3]

The test set has the size of Stanford Online Products: 60,500 unit embeddings of 512 dimensions, and 11,316 classes of 2
to 12 images.

Ours computes recall@1, @10, @100 and MAP@R with `dcml_tune.metrics.retrieval.retrieval_measures`. The references are
`search` of faiss.IndexFlatIP and of faiss.IndexFlatL2; their indexes are built before the time is taken. They search
for as many neighbours as these measures need: 101, because each query finds itself, or one more than the size of the
largest class if this is larger. The title of the table names the number. The recall@1 of the reference is computed
afterwards, outside of its time, and must be equal to ours. Both use all cores.

Memory is measured in a process of its own, which reads the embeddings and does the work once. It is the peak of its
memory minus what it used before the work. For Faiss it includes the index, which copies the embeddings, and the
neighbours.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import numpy.typing as npt
import torch
from costs import child, watch_memory
from measure import Row, alternate, ratio_line, show, value_line

from dcml_tune.metrics.retrieval import retrieval_measures

Embeddings = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

KS = (1, 10, 100)
INDICES: dict[str, type[faiss.Index]] = {"IndexFlatIP": faiss.IndexFlatIP, "IndexFlatL2": faiss.IndexFlatL2}
SMALLEST, LARGEST = 2, 12
BLOCK = 4096
MIB = 1 << 20


def drawn(images: int, classes: int, dimensions: int) -> tuple[Embeddings, Labels]:
    """Unit rows around one centre a class, in no order; classes of `SMALLEST` to `LARGEST` images, if they fit."""
    rng = np.random.default_rng(0)
    open_places = np.repeat(np.arange(classes), LARGEST - SMALLEST)
    more = rng.choice(open_places, images - SMALLEST * classes, replace=False)
    labels = rng.permutation(np.concatenate([np.repeat(np.arange(classes), SMALLEST), more]))
    centres = rng.standard_normal((classes, dimensions), dtype=np.float32)
    embeddings = np.empty((images, dimensions), dtype=np.float32)
    for start in range(0, images, BLOCK):
        block = rng.standard_normal(out=embeddings[start : start + BLOCK], dtype=np.float32)
        block *= 2.5
        block += centres[labels[start : start + BLOCK]]
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    return embeddings, labels


def neighbours(labels: Labels, ks: Sequence[int]) -> int:
    """The k of a search that gives all measures: the query itself, and the most others that one of them looks at."""
    return 1 + max(*ks, int(np.bincount(labels).max()) - 1)


def filled(name: str, embeddings: Embeddings) -> faiss.Index:
    """An index of the embeddings."""
    index = INDICES[name](embeddings.shape[1])
    index.add(embeddings)
    return index


def recall_at_1(found: Labels, labels: Labels) -> float:
    """Share of images whose nearest other one has their class, by the rows that a search found for each."""
    itself = np.arange(len(labels))
    nearest = np.where(found[:, 0] == itself, found[:, 1], found[:, 0])
    return float((labels[nearest] == labels).mean())


def peak(part: str, file: Path, ks: Sequence[int]) -> float:
    """Mebibytes that a part of this benchmark needs beside the embeddings, in a process of its own."""
    return float(child(__file__, "--peak", part, "--data", file, "--ks", *ks)) * 1e6 / MIB


def report_peak(part: str, file: Path, ks: Sequence[int]) -> None:
    """What `peak` runs: print the megabytes."""
    with np.load(file) as data:
        embeddings, labels = data["embeddings"], data["labels"]
    grown = watch_memory()
    if part == "ours":
        retrieval_measures(embeddings, labels, ks)
    else:
        filled(part, embeddings).search(embeddings, neighbours(labels, ks))
    print(json.dumps(grown()))


def measured(options: argparse.Namespace) -> tuple[str, list[Row]]:
    """The title and all rows of the table."""
    embeddings, labels = drawn(options.images, options.classes, options.dimensions)
    k = neighbours(labels, options.ks)
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "embeddings.npz"
        np.savez(file, embeddings=embeddings, labels=labels)
        peaks = [peak(part, file, options.ks) for part in ("ours", "IndexFlatIP")]
    measures: dict[str, float] = {}
    found: dict[str, Labels] = {}

    def ours() -> None:
        measures.update(retrieval_measures(embeddings, labels, options.ks))

    def theirs(name: str, index: faiss.Index) -> None:
        found[name] = index.search(embeddings, k)[1]

    works: dict[str, Callable[[], object]] = {"ours": ours}
    works |= {name: partial(theirs, name, filled(name, embeddings)) for name in INDICES}
    taken = alternate(works, options.repeats)
    rows = [ratio_line(f"time; {name}", taken["ours"], taken[name], unit="s", goal="1") for name in INDICES]
    for name in INDICES:
        expected = recall_at_1(found[name], labels)
        rows.append(value_line(f"recall@1; {name}", measures["recall_at_1"], expected, goal="1"))
    rows.append(value_line("peak memory; IndexFlatIP", *peaks, unit="MiB", goal="below 1024 MiB"))
    size = f"{options.images:,} x {options.dimensions}"
    return f"retrieval measures of {size}; Faiss's k is {k}; {torch.get_num_threads()} threads", rows


def main(argv: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=60_500)
    parser.add_argument("--classes", type=int, default=11_316)
    parser.add_argument("--dimensions", type=int, default=512)
    parser.add_argument("--ks", type=int, nargs="+", default=KS, help="k of recall@k; 1 must be among them")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peak", choices=("ours", *INDICES), help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.peak:
        report_peak(options.peak, options.data, options.ks)
        return []
    title, rows = measured(options)
    show(title, rows)
    return rows


if __name__ == "__main__":
    main()
