"""Distinct texts of each prompt, so that equal captions are judged and trained on once."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

__all__ = ["TextColumn", "distinct_texts", "every_condition"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TextColumn:
    """Column k of the distinct texts: the k-th distinct text of every prompt that has one."""

    prompts: tuple[int, ...]
    """Indices of the prompts that have a text in this column, increasing."""

    texts: tuple[str, ...]
    """Texts of these prompts, one per prompt."""

    conditions: tuple[tuple[int, ...], ...]
    """Conditions under which each prompt has its text, increasing: one tuple per prompt."""

    def of(self, table: Float[Tensor, "prompt ..."]) -> Float[Tensor, "column_prompt ..."]:
        """Select this column's prompts from a table over all prompts.

        Args:
            table: One entry for every prompt.

        Returns:
            The entries of this column's prompts; the table itself if the column has all prompts.
        """
        whole = self.prompts == tuple(range(table.shape[0]))
        return table if whole else table[list(self.prompts)]

    def weights(self, condition_weight: Sequence[float]) -> tuple[float, ...]:
        """Add up, for each text, the weights of the conditions that have it.

        Args:
            condition_weight: Weight of every condition [1].

        Returns:
            One sum per prompt [1].
        """
        return tuple(sum(condition_weight[k] for k in places) for places in self.conditions)


def distinct_texts(texts: Sequence[Sequence[str]]) -> tuple[TextColumn, ...]:
    """Keep each distinct text of a prompt once, and note the conditions that have it.

    Args:
        texts: One row per condition, with one text per prompt.

    Returns:
        Columns: the first holds every prompt's first text, the second the second distinct text of
        the prompts that have one, and so on.

    Raises:
        ValueError: If conditions differ in their number of prompts, or there is no prompt.

    Examples:
        >>> for column in distinct_texts([["a", "b"], ["a", "c"], ["a", "b"]]):
        ...     print(column.prompts, column.texts, column.conditions)
        (0, 1) ('a', 'b') ((0, 1, 2), (0, 2))
        (1,) ('c',) ((1,),)
    """
    sizes = sorted({len(row) for row in texts})
    if len(sizes) != 1 or sizes[0] == 0:
        msg = f"`texts` must hold one text per prompt in every condition; got rows of {sizes}."
        raise ValueError(msg)
    places: list[dict[str, list[int]]] = [{} for _ in texts[0]]
    for condition, row in enumerate(texts):
        for seen, text in zip(places, row, strict=True):
            seen.setdefault(text, []).append(condition)
    columns = []
    for index in range(max(map(len, places))):
        prompts = [prompt for prompt, seen in enumerate(places) if len(seen) > index]
        entries = [list(places[prompt].items())[index] for prompt in prompts]
        columns.append(
            TextColumn(
                prompts=tuple(prompts),
                texts=tuple(text for text, _ in entries),
                conditions=tuple(tuple(conditions) for _, conditions in entries),
            )
        )
    return tuple(columns)


def every_condition(
    columns: Sequence[TextColumn], tables: Sequence[Float[Tensor, "_ ..."]]
) -> Float[Tensor, "condition prompt ..."]:
    """Copy values of distinct texts to every condition that has the text.

    Args:
        columns: From :func:`distinct_texts`.
        tables: One table per column, with one entry for each of its prompts.

    Returns:
        One entry per condition and prompt.

    Examples:
        >>> import torch
        >>> columns = distinct_texts([["a", "b"], ["a", "c"]])
        >>> every_condition(columns, [torch.tensor([1.0, 2.0]), torch.tensor([3.0])]).tolist()
        [[1.0, 2.0], [1.0, 3.0]]
    """
    count = 1 + max(k for column in columns for places in column.conditions for k in places)
    first = tables[0]
    whole = first.new_empty((count, len(columns[0].prompts), *first.shape[1:]))
    for column, table in zip(columns, tables, strict=True):
        for prompt, places, entry in zip(column.prompts, column.conditions, table, strict=True):
            whole[list(places), prompt] = entry
    return whole
