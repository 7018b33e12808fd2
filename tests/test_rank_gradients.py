"""Two ranks compute the gradients of one process that averages their two batches; what they exchange arrives."""

import subprocess
import sys
from pathlib import Path

import pytest
import rank_cases
import torch
import torch.distributed as dist
from rank_cases import CASES, backward, gradients, step_of

from dcml_tune.training.ranks.exchange import ALONE, Ranks
from dcml_tune.training.ranks.processes import meet
from dcml_tune.training.seeding import epoch_seed


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What rank 0, this process, and rank 1 have computed."""
    directory = tmp_path_factory.mktemp("meeting")
    other = subprocess.Popen(
        [sys.executable, rank_cases.__file__, str(directory)], cwd=Path(rank_cases.__file__).parent
    )
    try:
        own = rank_cases.all_of(meet(directory, 0, 2, "cpu"))
        assert other.wait(600) == 0
    finally:
        other.kill()
        if dist.is_initialized():
            dist.destroy_process_group()
    return own, torch.load(directory / "rank-1.pt")


@pytest.mark.parametrize("case", CASES, ids=", ".join)
def test_the_gradient_is_the_mean_over_the_batches(case, found, one_thread):
    """To 1e-5 of the largest one; the same on both ranks, to the last bit. What is frozen has none on either."""
    step, phase = step_of(CASES[case]), case[1]
    alone = []
    for rank in (0, 1):
        backward(step, phase, rank)
        alone.append(gradients(step))
    batches = 1 if phase == "a rank without a batch" else 2
    trained = 0
    for first, second, *ours in zip(*alone, *(each["gradients"][case] for each in found), strict=True):
        if first is None:
            assert second is None
            assert ours == [None, None]
            continue
        trained += 1
        expected = (first + second) / 2 if batches == 2 else first
        assert torch.equal(ours[0], ours[1])
        assert (ours[0] - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())
    assert trained
    if batches == 2:
        assert any(not torch.allclose(a, b) for a, b in zip(*alone, strict=True) if a is not None)


def test_every_trainable_parameter_has_a_gradient_in_one_process(one_thread):
    """Ranks give 0 to those without; the optimiser would skip them in one process."""
    for (_, phase), settings in CASES.items():
        step = step_of(settings)
        backward(step, phase, 0)
        assert all(each.requires_grad == (each.grad is not None) for each in step.parameters())


def test_ranks_with_other_parameters_stop(found):
    """Rather than train something else than one model."""
    for each in found:
        assert each["unequal"].startswith("the parameters of the 2 ranks differ by 0.1: ")


def test_orders_and_rows_arrive(found):
    """With the types and shapes of their tensors; rows in the order of the ranks; batch-norm statistics are averaged."""
    (told, told_tensors), rows, means = found[0]["exchanged"]
    (heard, tensors), same, also = found[1]["exchanged"]
    assert heard == told
    assert tensors.keys() == told_tensors.keys()
    for name, value in told_tensors.items():
        assert torch.equal(tensors[name], value)
        assert tensors[name].dtype == value.dtype
    assert rows[:, 0].tolist() == same[:, 0].tolist() == [0, 0, 0, 1, 1]
    assert means == also == [0.5, 1.5, 2.5, 3.5]


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_every_batch_is_of_one_rank_in_as_many_turns(size):
    """Consecutive batches, which are of different clusters, are of one update; the last one says how many it has."""
    batches = list("abcdefghijk")
    turns = [Ranks(rank=rank, size=size).turns(batches) for rank in range(size)]
    assert {len(each) for each in turns} == {-(-11 // size)}
    updates = [[each for each in update if each.batch is not None] for update in zip(*turns, strict=True)]
    assert [each.batch for update in updates for each in update] == batches
    assert [each.number for update in updates for each in update] == list(range(11))
    assert all(each.batches == len(update) for update in updates for each in update)


def test_seeds_of_ranks_differ():
    """Rank 0 has that of one process, so that one rank trains as before."""
    assert len({epoch_seed(1, 2, rank) for rank in range(8)}) == 8
    assert epoch_seed(1, 2, 0) == epoch_seed(1, 2)
    assert (ALONE.lr_scale, Ranks(size=4).lr_scale) == (1, 4)
