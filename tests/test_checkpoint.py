import errno
import os
import resource
import stat

import pytest
import torch

from dcml_tune.utils import checkpoint
from dcml_tune.utils.checkpoint import CheckpointError

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2])}


def test_a_checkpoint_gives_back_what_was_written(tmp_path):
    """Tensors bit for bit, and facts."""
    checkpoint.write(tmp_path, "c", TENSORS, {"epoch": 3})
    tensors, facts = checkpoint.read(tmp_path, "c")
    assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())
    assert facts["epoch"] == 3


@pytest.mark.parametrize("name", ["c.json", "c.safetensors"])
@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_any_damage_is_found_and_named(tmp_path, name, how):
    """A flipped bit, a file cut short, a missing one."""
    checkpoint.write(tmp_path, "c", TENSORS, {"epoch": 3})
    file = tmp_path / name
    data = bytearray(file.read_bytes())
    if how == "remove":
        file.unlink()
    else:
        data[len(data) // 2] ^= how == "flip"
        file.write_bytes(data if how == "flip" else data[:-3])
    with pytest.raises(CheckpointError, match=str(tmp_path)):
        checkpoint.read(tmp_path, "c")


def test_the_newest_whole_one_is_taken(tmp_path, caplog):
    """A process that was killed between the two files of a new checkpoint leaves the one before; damage is named."""
    checkpoint.write(tmp_path, checkpoint.numbered("c", 9), TENSORS, {"epoch": 9})
    checkpoint.write(tmp_path, checkpoint.numbered("c", 10), TENSORS, {"epoch": 10})
    assert checkpoint.newest(tmp_path, "c")[1]["epoch"] == 10
    (tmp_path / "c-00010.json").unlink()
    assert checkpoint.newest(tmp_path, "c")[1]["epoch"] == 9
    assert "c-00010" in caplog.text
    checkpoint.keep_only(tmp_path, "c", 9)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c-00009.json", "c-00009.safetensors"]
    checkpoint.keep_only(tmp_path, "c")
    with pytest.raises(CheckpointError, match="holds no c"):
        checkpoint.newest(tmp_path, "c")


def test_others_may_read_it_as_the_umask_says(tmp_path):
    """A directory of a team: its MLflow server and its members read models."""
    for mask, mode in ((0o022, 0o644), (0o027, 0o640)):
        before = os.umask(mask)
        try:
            checkpoint.write(tmp_path, f"c{mask}", TENSORS, {})
        finally:
            os.umask(before)
        found = [stat.S_IMODE((tmp_path / f"c{mask}.{suffix}").stat().st_mode) for suffix in ("safetensors", "json")]
        assert found == [mode, mode]


def test_an_error_of_the_system_is_one(tmp_path):
    """A trial that cannot write stops its search; which error it was decides that."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            checkpoint.write(tmp_path, "c", {"a": torch.zeros(1000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(tmp_path / "c.safetensors"))
    assert not list(tmp_path.iterdir())
