"""Metrics of groups: the groups that teach nothing."""

import torch

from mvczigal_ref.method.group_metrics import reward_metrics
from mvczigal_ref.reward.table import RewardTable


def test_groups_that_are_alike_but_for_rounding_are_counted():
    """Their advantages are 0, as of groups that were scored alike to the last digit."""
    reward = torch.full((1, 4, 3, 2), 20.0)
    reward[0, 1, 0] = torch.nextafter(reward[0, 1, 0], torch.tensor(30.0))
    reward[0, 2:, 0] = 21.0
    table = RewardTable(per_view={"a": reward}, joint={}, weights={"a": 1.0})

    assert reward_metrics(table)["groups_alike"] == 0.5
