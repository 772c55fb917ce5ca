"""Equal texts of a prompt stand for each other: each is judged and learnt once."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

__all__ = ["TextColumn", "distinct_texts", "every_condition"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TextColumn:
    """One text each of some prompts, none of which an earlier column holds."""

    prompts: tuple[int, ...]
    """Whose texts they are, increasing."""

    texts: tuple[str, ...]
    """One a prompt."""

    conditions: tuple[tuple[int, ...], ...]
    """Which of each prompt's conditions say so, increasing."""

    def of(self, table: Float[Tensor, "prompt ..."]) -> Float[Tensor, "mine ..."]:
        """Narrow a table to these prompts.

        Args:
            table: An entry for each prompt there is.

        Returns:
            The entries of these; the same memory where these are all.
        """
        whole = self.prompts == tuple(range(table.shape[0]))
        return table if whole else table[list(self.prompts)]

    def weights(self, condition_weight: Sequence[float]) -> tuple[float, ...]:
        """Add up what the conditions weigh that each text stands for.

        Args:
            condition_weight: Of every condition [1].

        Returns:
            One sum a prompt [1].
        """
        return tuple(sum(condition_weight[k] for k in places) for places in self.conditions)


def distinct_texts(texts: Sequence[Sequence[str]]) -> tuple[TextColumn, ...]:
    """Keep the first of each prompt's equal texts, and note which it stands for.

    Args:
        texts: Per condition one text a prompt.

    Returns:
        Columns, the first with the first text of every prompt; each next one holds the prompts
        that have another text still.

    Raises:
        ValueError: If conditions differ in their number of prompts, or there is none.

    Examples:
        >>> for column in distinct_texts([["a", "b"], ["a", "c"], ["a", "b"]]):
        ...     print(column.prompts, column.texts, column.conditions)
        (0, 1) ('a', 'b') ((0, 1, 2), (0, 2))
        (1,) ('c',) ((1,),)
    """
    sizes = sorted({len(row) for row in texts})
    if len(sizes) != 1 or sizes[0] == 0:
        msg = f"`texts` must hold one text a prompt in every condition; got rows of {sizes}."
        raise ValueError(msg)
    places: list[dict[str, list[int]]] = [{} for _ in texts[0]]
    for condition, row in enumerate(texts):
        for known, text in zip(places, row, strict=True):
            known.setdefault(text, []).append(condition)
    columns = []
    for index in range(max(map(len, places))):
        mine = [prompt for prompt, known in enumerate(places) if len(known) > index]
        found = [list(places[prompt].items())[index] for prompt in mine]
        columns.append(
            TextColumn(
                prompts=tuple(mine),
                texts=tuple(text for text, _ in found),
                conditions=tuple(tuple(stands_for) for _, stands_for in found),
            )
        )
    return tuple(columns)


def every_condition(
    columns: Sequence[TextColumn], tables: Sequence[Float[Tensor, "_ ..."]]
) -> Float[Tensor, "condition prompt ..."]:
    """Lay out what is known of distinct texts for all conditions that they stand for.

    Args:
        columns: From :func:`distinct_texts`.
        tables: A table a column, an entry for each of its prompts.

    Returns:
        One entry for every condition and prompt.

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
