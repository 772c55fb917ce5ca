"""Slices of an evaluation's samples, shared out over processes and gathered again."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Shaped
from torch import Tensor

from mvczigal_ref.distributed import World
from mvczigal_ref.errors import NonFiniteError, quoted

__all__ = ["OCCASION", "SampleSlices"]

OCCASION: Final = "evaluation"
"""Name by which an evaluation's noises are apart from every iteration's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleSlices:
    """Every prompt under every noise: sample ``n`` is prompt ``n mod P``, noise by noise."""

    prompts: Sequence[str]
    """Prompts, P of them."""

    num_noises: int
    """Initial noises per prompt."""

    size: int
    """Samples per slice, at most."""

    world: World
    """Processes, which share out the slices where these divide evenly and all do everything where
    not."""

    def __post_init__(self) -> None:
        """Refuse an evaluation of nothing."""
        if not self.prompts:
            msg = "`prompts` must hold at least one prompt; got none."
            raise ValueError(msg)
        if self.num_noises < 1:
            raise ValueError(f"`num_noises` must be at least 1; got {self.num_noises}.")

    @property
    def total(self) -> int:
        """Number of samples."""
        return self.num_noises * len(self.prompts)

    @property
    def shared(self) -> bool:
        """Whether every process has slices of its own."""
        return self.total % self.size == 0 and self.total // self.size % self.world.size == 0

    @property
    def mine(self) -> list[range]:
        """Samples of each slice that this process makes."""
        slices = [
            range(first, min(first + self.size, self.total))
            for first in range(0, self.total, self.size)
        ]
        places = self.world.slice_share(len(slices)) if self.shared else range(len(slices))
        return [slices[place] for place in places]

    def texts(self, part: Sequence[int]) -> list[str]:
        """Give the prompt of each sample.

        Args:
            part: Indices of samples.

        Returns:
            One prompt per sample.

        Examples:
            >>> slices = SampleSlices(prompts=["a", "b"], num_noises=2, size=3, world=World())
            >>> [slices.texts(part) for part in slices.mine]
            [['a', 'b', 'a'], ['b']]
        """
        return [self.prompts[index % len(self.prompts)] for index in part]

    def gathered(self, parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Join the tables of every slice of every process.

        Args:
            parts: Tables of each slice of :attr:`mine` in turn, one row per sample.

        Returns:
            A table per name with a row per sample, the same in every process.
        """
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return {name: self.everywhere(rows) for name, rows in whole.items()}

    def require_finite(self, kind: str, tables: Mapping[str, Tensor]) -> None:
        """Refuse a non-finite score.

        Args:
            kind: Kind of the scores, such as "reward".
            tables: Scores by scorer, a row per sample, as :meth:`gathered` gives them.

        Raises:
            NonFiniteError: If a score is NaN or infinite; names its scorer, prompt and noise, the
                prompt's place among all, and the view where there is one.

        Examples:
            >>> slices = SampleSlices(prompts=["a", "b"], num_noises=2, size=1, world=World())
            >>> slices.require_finite("reward", {"red": torch.tensor([0.0, 1.0, 2.0, torch.inf])})
            Traceback (most recent call last):
            mvczigal_ref.errors.NonFiniteError: `reward/red of 'b', noise 1` must be finite; got \
inf at object 1.
        """
        for name, table in tables.items():
            for sample, *view in (~table.isfinite()).nonzero().tolist()[:1]:
                noise, prompt = divmod(sample, len(self.prompts))
                raise NonFiniteError(
                    f"{kind}/{name} of {quoted(self.prompts[prompt])}, noise {noise}",
                    object=prompt, view=view[0] if view else None,
                    value=table[(sample, *view)].item(),
                )  # fmt: skip

    def everywhere(self, rows: Shaped[Tensor, " sample *rest"]) -> Shaped[Tensor, " all *rest"]:
        """Gather rows where processes share the slices; give them back where not.

        Args:
            rows: Rows of this process's samples, as many in every process.

        Returns:
            Rows of all processes in turn, the same in every process.
        """
        return self.world.gather_objects(rows) if self.shared else rows
