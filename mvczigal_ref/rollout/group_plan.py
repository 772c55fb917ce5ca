"""Plan of a group: the places where it divides, and the steps that draw noise.

A rollout of a group walks a tree from noise to image: its roots have initial noise of their own,
a node is one latent of every prompt, and the leaves are the group's members.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["GroupPlan", "require_at_least", "require_steps"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupPlan:
    """The shape of every prompt's group; see :meth:`group` and :meth:`tree`."""

    num_roots: int
    """Initial noises per prompt."""

    widths: tuple[int, ...]
    """Branches of every node, one number per step; 1 where nothing divides."""

    stochastic_steps: tuple[int, ...]
    """Steps that draw noise, increasing; all others follow the ODE."""

    def __post_init__(self) -> None:
        """Refuse a tree whose leaves would be equal, or whose draws could not be compared."""
        require_at_least(1, num_roots=self.num_roots)
        if not self.widths or min(self.widths) < 1:
            msg = f"`widths` must hold a number of at least 1 per step; got {self.widths}."
            raise ValueError(msg)
        require_steps("stochastic_steps", self.stochastic_steps, num_steps=self.num_steps)
        for step, width in enumerate(self.widths):
            if width > 1 and step not in self.stochastic_steps:
                msg = (
                    f"`widths` must be 1 outside `stochastic_steps` = {self.stochastic_steps}; got "
                    f"{width} at step {step}. Branches that draw no noise would stay equal."
                )
                raise ValueError(msg)
        for step in self.stochastic_steps:
            if self.num_leaves > 1 and self._nodes_after(step + 1) == 1:
                msg = (
                    "`stochastic_steps` must not begin before the group divides; got step "
                    f"{step}, at which all members are still one. What they share has no "
                    "advantage: divide there, or leave the step to the ODE."
                )
                raise ValueError(msg)

    @classmethod
    def group(
        cls, size: int, *, stochastic_steps: Sequence[int], num_steps: int, shared_noise: bool
    ) -> "GroupPlan":
        """Plan a group that divides once: at its initial noise, or at its first stochastic step.

        Source:
            Independent noise and all steps but the last are Flow-GRPO (arXiv:2505.05470); shared
            noise, DanceGRPO (arXiv:2505.07818). A window with shared noise is Flow-GRPO-Fast's
            branching form: one trajectory of the ODE per prompt up to the window.

        Args:
            size: Members per group; at least 1.
            stochastic_steps: Steps that draw noise, such as a window of ``rollout.windows``,
                increasing.
            num_steps: Steps of the grid.
            shared_noise: Whether all members have the same initial noise.

        Returns:
            The plan.

        Raises:
            ValueError: If a number is out of its range, or if a group of several members shares
                its noise and no step draws any.

        Examples:
            >>> plan = GroupPlan.group(8, stochastic_steps=(2, 3), num_steps=5, shared_noise=True)
            >>> plan.nodes
            (1, 1, 1, 8, 8)
        """
        require_at_least(1, size=size)
        steps = tuple(stochastic_steps)
        if not shared_noise or size == 1:
            return cls(num_roots=size, widths=(1,) * num_steps, stochastic_steps=steps)
        if not steps:
            msg = (
                "`stochastic_steps` must hold a step where `shared_noise` is True; got none. The "
                f"{size} members would be equal."
            )
            raise ValueError(msg)
        return cls.tree({steps[0]: size}, stochastic_steps=steps, num_steps=num_steps)

    @classmethod
    def tree(
        cls,
        branching: Mapping[int, int],
        *,
        stochastic_steps: Sequence[int],
        num_steps: int,
        num_roots: int = 1,
    ) -> "GroupPlan":
        """Plan a group that divides at given steps.

        Source:
            arXiv:2509.06040 (BranchGRPO), which divides in two at steps 0, 3, 6 and 9 and draws
            noise at all steps.

        Args:
            branching: Branches of every node, by step.
            stochastic_steps: Steps that draw noise, increasing; those of ``branching`` and
                any after the first of them.
            num_steps: Steps of the grid.
            num_roots: Initial noises per prompt; at least 1.

        Returns:
            The plan.

        Raises:
            ValueError: If a step is outside the grid, a number out of its range, or a step
                divides without drawing noise or draws noise before the group divides.

        Examples:
            >>> halves = {0: 2, 3: 2, 6: 2, 9: 2}
            >>> plan = GroupPlan.tree(halves, stochastic_steps=range(12), num_steps=12)
            >>> plan.branching, plan.num_leaves, sum(plan.nodes)
            ((2, 2, 2, 2), 16, 75)
        """
        require_steps("branching", sorted(branching), num_steps=num_steps)
        return cls(
            num_roots=num_roots,
            widths=tuple(branching.get(step, 1) for step in range(num_steps)),
            stochastic_steps=tuple(stochastic_steps),
        )

    @property
    def num_steps(self) -> int:
        """Length of the grid, and network calls of a rollout [steps]."""
        return len(self.widths)

    @property
    def num_leaves(self) -> int:
        """Members of a group."""
        return self._nodes_after(self.num_steps)

    @property
    def nodes(self) -> tuple[int, ...]:
        """Nodes that each network call sees, which are its rows per prompt and view."""
        return tuple(self._nodes_after(step) for step in range(self.num_steps))

    @property
    def branching(self) -> tuple[int, ...]:
        """Branches at each place where the group divides, the roots first; (1,) if nowhere."""
        return tuple(width for width in (self.num_roots, *self.widths) if width > 1) or (1,)

    def depth(self, step: int) -> int:
        """Return the index of the ``depth_advantages`` table that holds the nodes a step draws.

        Args:
            step: A stochastic step.

        Returns:
            Places passed at which the group divided, less one; 0 in a group of one.
        """
        divided = [width for width in (self.num_roots, *self.widths[: step + 1]) if width > 1]
        return max(len(divided) - 1, 0)

    def paths(self, taken: int) -> list[tuple[int, ...]]:
        """Name the nodes after some steps by their branches, in order, the root's first.

        Args:
            taken: Steps taken; 0 names the roots.

        Returns:
            One path per node, of ``taken`` + 1 numbers.
        """
        return list(itertools.product(*map(range, (self.num_roots, *self.widths[:taken]))))

    def _nodes_after(self, taken: int) -> int:
        """Count the nodes after some steps."""
        return self.num_roots * math.prod(self.widths[:taken])


def require_at_least(smallest: int, **numbers: int) -> None:
    """Refuse a count that is too small.

    Args:
        smallest: Least count.
        **numbers: Counts under the name that the caller knows them by.

    Raises:
        ValueError: If one is smaller.

    Examples:
        >>> require_at_least(1, size=4)
    """
    for name, number in numbers.items():
        if number < smallest:
            msg = f"`{name}` must be at least {smallest}; got {number}."
            raise ValueError(msg)


def require_steps(name: str, steps: Sequence[int], *, num_steps: int) -> None:
    """Refuse steps that are not in a grid, or not in its order.

    Args:
        name: Name that the caller gives the steps.
        steps: Indices into a grid.
        num_steps: Steps of the grid.

    Raises:
        ValueError: If a step is outside the grid, or they do not increase.

    Examples:
        >>> require_steps("steps", (0, 2), num_steps=3)
    """
    given = list(steps)
    if given != sorted(set(given)) or any(not 0 <= step < num_steps for step in given):
        msg = f"`{name}` must increase within 0..{num_steps - 1}; got {given}."
        raise ValueError(msg)
