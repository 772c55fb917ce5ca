"""Drift of the captions: the change of every sample's log-density under each."""

from collections.abc import Sequence

from mvczigal_ref.condition.distinct import every_condition
from mvczigal_ref.method.caption import Conditions
from mvczigal_ref.method.group_batches import Decisions
from mvczigal_ref.method.protocol import Drift, Iteration
from mvczigal_ref.objective.augmented_conditions import probability_drift

__all__ = ["caption_drift"]


def caption_drift(
    conditions: Sequence[Conditions],
    decisions: Sequence[Sequence[Decisions]],
    iteration: Iteration,
) -> Drift | None:
    """Measure how captions change the density of the prompts' samples.

    Source:
        arXiv:2603.12648 (MV-GRPO), its figure on how well samples fit augmented conditions.

    Args:
        conditions: Columns of distinct texts of each slice.
        decisions: Decisions of each slice under every column.
        iteration: Iteration whose slices are gathered from all processes.

    Returns:
        One table per decision [unit of the log-density]; None without captions.
    """
    if not conditions[0].captions[0]:
        return None
    tables = []
    for index in range(len(decisions[0][0])):
        rows = [
            # Views stand where the function has steps: they are not added up either.
            probability_drift(
                every_condition(
                    condition.columns, [drawn[index].log_prob for drawn in part]
                ).transpose(0, 1)
            )
            for condition, part in zip(conditions, decisions, strict=True)
        ]
        tables.append(iteration.share.gather(rows, iteration.world))
    return tuple(tables)
