"""Laws of the slices that an evaluation shares out."""

import pytest
import torch

from mvczigal_ref.distributed import World
from mvczigal_ref.evaluation.slices import SampleSlices

PROMPTS = ["a", "b", "c", "d"]


def slices(*, size: int, rank: int = 0, processes: int = 1, noises: int = 2) -> SampleSlices:
    return SampleSlices(
        prompts=PROMPTS, num_noises=noises, size=size, world=World(rank=rank, size=processes)
    )


@pytest.mark.parametrize(("size", "processes"), [(1, 1), (2, 1), (2, 2), (4, 2), (1, 8), (3, 1)])
def test_processes_make_every_sample_once_and_in_order(size, processes):
    shares = [
        index
        for rank in range(processes)
        for part in slices(size=size, rank=rank, processes=processes).mine
        for index in part
    ]

    assert shares == list(range(8))


@pytest.mark.parametrize(("size", "processes"), [(3, 2), (8, 2), (2, 3)])
def test_every_process_makes_all_where_slices_do_not_divide(size, processes):
    for rank in range(processes):
        share = slices(size=size, rank=rank, processes=processes)

        assert not share.shared
        assert [index for part in share.mine for index in part] == list(range(8))


def test_samples_run_through_the_prompts_noise_by_noise():
    share = slices(size=4)

    assert [share.texts(part) for part in share.mine] == [PROMPTS, PROMPTS]


def test_tables_keep_the_order_of_the_samples():
    share = slices(size=3)
    parts = [
        {"row": torch.tensor(list(part)), "twice": torch.ones(len(part), 2)} for part in share.mine
    ]

    tables = share.gathered(parts)

    assert tables["row"].tolist() == list(range(8))
    assert tables["twice"].shape == (8, 2)


@pytest.mark.parametrize(("prompts", "noises"), [([], 1), (PROMPTS, 0)])
def test_an_evaluation_of_nothing_is_refused(prompts, noises):
    """A mean of nothing is no number."""
    name = "num_noises" if prompts else "prompts"
    with pytest.raises(ValueError, match=f"`{name}` must"):
        SampleSlices(prompts=prompts, num_noises=noises, size=1, world=World())
