"""Checks that a node of a cluster can run the trials of a search, in a process on that node.

The driver has checked its own machine. A node with other code, without the images or the output directory, or with a GPU
that does not compute would fail trial after trial, or give results that cannot be compared.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ray.exceptions import RayTaskError

from dcml_tune import data
from dcml_tune.config.errors import SettingError
from dcml_tune.config.trial import TrialConfig
from dcml_tune.runs.storage import FLAG, Storage, StorageError
from dcml_tune.runs.storage_address import storage_fault
from dcml_tune.runs.stores import Stores, scratch_fault
from dcml_tune.training.devices import exhausted_memory
from dcml_tune.training.prefixes import code_identity
from dcml_tune.utils import tracebacks
from dcml_tune.utils.files import write_atomic
from trainables.node_disk import full_disk, missing_bytes, wrong_scratch

_PACKAGES = ("torch", "torchvision", "timm", "ray")


class NodeFaultError(Exception):
    """A trial cannot run on its node, and can on another: it is moved, and its failure says nothing about its settings."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What a node must have. The driver describes its own machine."""

    output: str
    """Absolute path of the directory of all searches, which all nodes share unless there is a storage."""
    storage: str | None = None
    """Address of --storage; None: there is none."""
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Name and content of a file in it that this driver has written."""
    code: str = field(default_factory=code_identity)
    """Hash of the source files of dcml_tune."""
    versions: Mapping[str, str] = field(default_factory=lambda: _versions())
    gpus: bool = False
    """Whether trials need GPUs."""
    settings: Mapping[str, Any] | None = None
    """Settings that say where the images are; None: they are not checked."""
    scratch: str | None = None
    """Absolute path of the directory of the image stores on the node's own disk; None: they are in the output directory."""
    store_bytes: Mapping[str, int] = field(default_factory=dict)
    """Name -> size of the image stores of the search."""
    images: str | None = None
    """Fingerprint of the content of the images that the search began with."""

    @property
    def mark(self) -> Path:
        """The file that shows whether a directory is the same; with a storage, the object of this name shows it."""
        return Path(self.output) / f".node-check-{self.token}"

    def write_mark(self) -> None:
        """Write the file or object of this driver."""
        if self.storage is None:
            write_atomic(self.mark, self.token.encode())
        else:
            Storage(self.storage).write(self.mark.name, self.token.encode())

    def remove_mark(self) -> None:
        """Remove it."""
        with suppress(OSError, StorageError):
            if self.storage is None:
                self.mark.unlink(missing_ok=True)
            else:
                Storage(self.storage, patience_s=0.0).remove([self.mark.name])

    def with_gpus(self, gpus: bool) -> Needs:
        """Return the needs of trials that need GPUs, or do not."""
        return replace(self, gpus=gpus)

    @property
    def stores(self) -> Stores:
        """The directories of the image stores."""
        return Stores.below(Path(self.output), self.scratch, self.storage)

    def with_images(self, settings: Mapping[str, Any], images: str, store_bytes: Mapping[str, int]) -> Needs:
        """Return the needs of a search whose images are known; see the fields."""
        return replace(self, settings=settings, images=images, store_bytes=store_bytes)

    def without_images(self) -> Needs:
        """Return the needs of a node whose images are known to be right: that of the driver."""
        return replace(self, settings=None)

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as they are sent to a node."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class NodeReport:
    """What was found on a node."""

    reason: str | None
    """Why it cannot run trials, with the remedy; None: it can."""
    gpu: str | None = None
    """Name and memory of its first GPU."""
    gpu_bytes: int = 0
    """Memory of the smallest of its GPUs; 0: it has none, or trials need none."""


def examine(needs: dict[str, Any], gpus: float) -> dict[str, Any]:
    """Compare this node with what a search needs; runs as a task of Ray.

    Args:
        needs: fields of `Needs`.
        gpus: number of GPUs that the node has by its registration.

    Returns:
        The fields of a NodeReport.
    """
    wanted = Needs(**needs)
    other = _other_output if wanted.storage is None else _other_storage
    reason = _other_software(wanted) or other(wanted) or full_disk()
    gpu, gpu_bytes = None, 0
    if reason is None and wanted.gpus:
        reason, gpu, gpu_bytes = _gpu(int(gpus))
    if reason is None and wanted.settings is not None:
        config, stores = TrialConfig(**wanted.settings), wanted.stores
        reason = wrong_scratch(config, stores, lambda: missing_bytes(stores.directory, wanted.store_bytes))
        reason = reason or wrong_images(config, stores, wanted.images)
    return {"reason": reason, "gpu": gpu, "gpu_bytes": gpu_bytes}


def wrong_images(config: TrialConfig, stores: Stores, images: str | None) -> str | None:
    """Return why the images of this node are not those of the search, or None.

    Args:
        config: says where they are.
        stores: directories of the image stores.
        images: fingerprint of the content that the search began with; None: nothing is compared.
    """
    if images is None:
        return None
    try:
        dataset = data.load(config)
        found = data.Identity.of(dataset, stores, opens_test=config.protocol == "paper").compared
    except SettingError as error:
        return f"the images cannot be used there ({error}); copy them to the same place on this node"
    if found != images:
        return (
            f"its images are not those that the search began with (fingerprint of their content {found}, on the driver's node "
            f"{images}); copy them there"
        )
    return None


def _versions() -> dict[str, str]:
    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _other_software(needs: Needs) -> str | None:
    here = _versions()
    for name, version in needs.versions.items():
        if here.get(name) != version:
            return (
                f"it has {name} {here.get(name, 'not installed')}, the driver {version}; install the same version there"
            )
    if code_identity() != needs.code:
        return (
            "its code of dcml_tune is not that of the driver; install the same version there, or submit the search as a job "
            "with --working-dir"
        )
    return None


def _other_output(needs: Needs) -> str | None:
    remedy = "--output-dir must be on storage that all nodes share"
    try:
        if needs.mark.read_text() != needs.token:
            raise FileNotFoundError
    except FileNotFoundError:
        return f"its {needs.output} is not the directory of the driver; {remedy}"
    except OSError as error:
        return f"{needs.output} cannot be read there ({error.strerror}); {remedy}"
    own = needs.mark.with_name(f"{needs.mark.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        own.write_text("")
        own.unlink()
    except OSError as error:
        return f"{needs.output} cannot be written there ({error.strerror}); {remedy}"
    return None


def _other_storage(needs: Needs) -> str | None:
    """Return why this node cannot use the storage, or has no place for the files of its trials."""
    assert needs.storage is not None
    if fault := storage_fault(needs.storage):
        return f"{FLAG} {needs.storage}: {fault} there"
    try:
        if Storage(needs.storage, patience_s=0.0).read(needs.mark.name) != needs.token.encode():
            raise FileNotFoundError
    except (FileNotFoundError, StorageError):
        return f"{FLAG} {needs.storage}: is not the storage of the driver there; give an address that is the same everywhere"
    if fault := scratch_fault(Path(needs.output), None):
        return f"--output-dir {needs.output}: {fault} there; all nodes need a directory of this path on their disks"
    return None


def _gpu(count: int) -> tuple[str | None, str | None, int]:
    """Compute on each GPU; returns why trials cannot, the name of the first one, and the memory of the smallest."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        del os.environ["CUDA_VISIBLE_DEVICES"]  # Ray hides the GPUs from a task without a share of them
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if found < count:
        return f"torch finds {found} of its {count} GPUs; check its driver (nvidia-smi)", None, 0
    for device in range(found):
        try:
            torch.ones(8, device=f"cuda:{device}").sum().item()
        except RuntimeError as error:
            if exhausted_memory(error) is None:  # trials that run there may have taken all
                return f"its GPU {device} does not compute ({str(error).splitlines()[0]}); check nvidia-smi", None, 0
    if not found:
        return None, None, 0
    all_facts = [torch.cuda.get_device_properties(device) for device in range(found)]
    name = f"{all_facts[0].name} ({all_facts[0].total_memory / 2**30:.0f} GiB)"
    return None, name, min(facts.total_memory for facts in all_facts)


def why_no_answer(error: Exception) -> str:
    """Return why a check failed before it could answer, with the remedy."""
    text = tracebacks.last_error(str(error)) if isinstance(error, RayTaskError) else str(error)
    if "ModuleNotFoundError" in text or "No module named" in text:
        name = text.rpartition("No module named ")[2].split("\n")[0].strip("'\". ").split(".")[0] or "dcml_tune"
        return (
            f"Python finds no {name} there; install dcml_tune there, or submit the search as a job with --working-dir"
        )
    return f"its check failed ({text.splitlines()[0][:200] if text else type(error).__name__}); see the logs of Ray on this node"
