"""`slices`: laws, errors."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mvczigal_ref.config import from_dict
from mvczigal_ref.distributed import World
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.method.slices import Share
from mvczigal_ref.reward.table import RewardTable

WORLDS = (1, 2, 4)


def config_of(objects, size, groups=1, replayed=None):
    """Configure slices and optimiser steps."""
    run = {
        "objects_per_iteration": objects,
        "objects_per_slice": size,
        "replay_objects_per_slice": replayed,
    }
    return from_dict({"run": run, "optim": {"optimizer_steps_per_epoch": groups}})


def shares(config, size):
    """Give every process's share."""
    return [Share.of(config, World(rank=rank, size=size)) for rank in range(size)]


# Objects a slice, optimiser steps, and slices per step that 1, 2 and 4 processes can share.
SIZES = st.tuples(st.integers(1, 3), st.integers(1, 3), st.sampled_from([4, 8]))


def config_with(sizes):
    """Configure slices of those sizes."""
    size, groups, per_group = sizes
    return config_of(groups * per_group * size, size, groups)


# -- laws --------------------------------------------------------------------------------


@given(SIZES)
def test_one_process_has_all_slices_in_order(sizes):
    """The objects as they are counted."""
    (size, groups, per_group), config = sizes, config_with(sizes)
    (share,) = shares(config, 1)

    assert share.objects == [range(i * size, (i + 1) * size) for i in range(groups * per_group)]
    assert share.order == list(range(config.run.objects_per_iteration))


@given(SIZES, st.sampled_from(WORLDS))
def test_processes_share_out_the_slices_of_one(sizes, processes):
    """Each slice goes to one process, whole."""
    config = config_with(sizes)
    (one,), many = shares(config, 1), shares(config, processes)
    dealt = [part for share in many for part in share.objects]

    assert sorted(dealt, key=lambda part: part.start) == one.objects


@given(SIZES, st.sampled_from(WORLDS))
def test_an_optimiser_step_sees_the_same_objects_whatever_the_processes(sizes, processes):
    """And each process has as many slices of it as any other."""
    (size, groups, per_group), config = sizes, config_with(sizes)
    many = shares(config, processes)
    own = per_group // processes
    for group in range(groups):
        mine = [share.objects[group * own : (group + 1) * own] for share in many]
        seen = sorted(i for parts in mine for part in parts for i in part)
        first = group * per_group * size

        assert seen == list(range(first, first + per_group * size))


@given(SIZES, st.sampled_from(WORLDS))
def test_gathering_restores_the_order_of_the_objects(sizes, processes):
    """Rewards concatenated by process come back object by object, in every process alike."""
    config = config_with(sizes)
    many = shares(config, processes)
    number = torch.arange(float(config.run.objects_per_iteration))
    tables = [[table_of(number[part.start : part.stop]) for part in s.objects] for s in many]
    whole = table_of(number)
    for rank, share in enumerate(many):
        gathered = share.gather_rewards(tables[rank], Gathered(tables, rank))

        assert torch.equal(gathered.per_view["sharp"], whole.per_view["sharp"])
        assert torch.equal(gathered.joint["whole"], whole.joint["whole"])
        assert gathered.weights == whole.weights
        assert share.order == many[0].order


def table_of(number):
    """Give rewards that tell conditions, objects, samples, views and kinds apart."""
    condition, sample, view = torch.arange(2.0), torch.arange(3.0) / 10, torch.arange(2.0) / 100
    by_sample = 100 * condition[:, None, None] + number[:, None] + sample
    return RewardTable(
        per_view={"sharp": by_sample[..., None] + view},
        joint={"whole": by_sample + 0.05},
        weights={"sharp": 1.0, "whole": 2.0},
    )


def tensors_of(table):
    """List a table's tensors, objects first."""
    tables = (*table.per_view.values(), *table.joint.values())
    return [tensor.transpose(0, 1) for tensor in tables]


class Gathered(World):
    """A process that knows what the others hold."""

    def __init__(self, tables, rank):
        World.__init__(self, rank=rank, size=len(tables))
        count = len(tensors_of(tables[0][0]))
        object.__setattr__(
            self,
            "everybodys",
            [[torch.cat([tensors_of(t)[i] for t in own]) for own in tables] for i in range(count)],
        )

    def gather_objects(self, share):
        """Concatenate by process the kind of reward that this share is."""
        (found,) = [parts for parts in self.everybodys if torch.equal(parts[self.rank], share)]
        return torch.cat(found)


# -- errors ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("objects", "size", "groups", "processes", "nearest"),
    [(6, 2, 2, 1, 8), (4, 2, 1, 4, 8), (12, 2, 2, 2, 16), (2, 2, 2, 1, 4)],
)
def test_rejects_slices_that_cannot_be_shared(objects, size, groups, processes, nearest):
    """With the next number of objects that can."""
    message = f"The nearest valid value of `run.objects_per_iteration` is {nearest}"
    with pytest.raises(ConfigError, match=message):
        Share.of(config_of(objects, size, groups), World(rank=0, size=processes))
    Share.of(config_of(nearest, size, groups), World(rank=0, size=processes))


def test_rejects_slices_that_would_grow():
    """Replay never joins slices, so the setting would do nothing."""
    message = "`run.replay_objects_per_slice` must be at most `run.objects_per_slice` = 2; got 4"
    with pytest.raises(ConfigError, match=message):
        Share.of(config_of(8, 2, replayed=4), World())
    Share.of(config_of(8, 2, replayed=2), World())


def test_parts_hold_each_slice_s_prompts():
    """In the slices' order; another number of prompts is refused."""
    share = Share.of(config_of(4, 2), World())
    parts = share.parts(["a", "b", "c", "d"])

    assert [(part.objects, part.prompts) for part in parts] == [
        (range(2), ["a", "b"]),
        (range(2, 4), ["c", "d"]),
    ]
    with pytest.raises(ValueError, match=r"`prompts` must hold one prompt per object.*got 3"):
        share.parts(["a", "b", "c"])
