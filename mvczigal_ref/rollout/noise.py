"""Noise that belongs to an object, not to a batch.

Every draw has a generator of its own, seeded by what it is for, so a rollout
is the same at any batch size, any number of processes, and after a resume.
"""

import hashlib
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mvczigal_ref.shapes import ObjectLatent

__all__ = ["NoiseSource", "SeededNoise", "derived_generator"]

NoiseSource = Callable[[int, int], ObjectLatent]
"""Standard-normal noise of (step, draw within the step) for a slice of objects."""


def derived_generator(*names: int | str) -> torch.Generator:
    """Make a CPU generator from what the numbers are for.

    Source:
        Ours. A sum or product of the numbers would collide, and torch seeds a Mersenne
        twister that close seeds correlate, so the names are hashed.

    Args:
        *names: Names such as run seed, iteration, object, arm and step; 1 and "1" differ, and an
            integer of any type is the number.

    Returns:
        A generator whose stream differs whenever a name does.

    Examples:
        >>> a, b = derived_generator(0, "initial"), derived_generator(0, "initial")
        >>> bool(torch.randn(1, generator=a) == torch.randn(1, generator=b))
        True
    """
    plain = tuple(str(name) if isinstance(name, str) else operator.index(name) for name in names)
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


@dataclass(frozen=True, kw_only=True, slots=True)
class SeededNoise:
    """All noise of one iteration, for some of its objects."""

    seed: int
    """Run seed."""

    iteration: int | str
    """Index of the iteration, or another name of the occasion."""

    objects: Sequence[int]
    """Index of each object within the iteration."""

    shape: tuple[int, int, int, int]
    """Views, channels, height and width of one object's latents."""

    device: torch.device | str = "cpu"
    """Device that the noise is used on; it is always drawn on the CPU, in fp32."""

    def initial(self) -> ObjectLatent:
        """Draw x_T, shared by both arms of a pair.

        Returns:
            Standard normal, fp32 [1].

        Examples:
            >>> noise = SeededNoise(seed=0, iteration=0, objects=[3, 4], shape=(6, 4, 8, 8))
            >>> alone = SeededNoise(seed=0, iteration=0, objects=[4], shape=(6, 4, 8, 8))
            >>> torch.equal(noise.initial()[1:], alone.initial())
            True
        """
        return self._draw("initial")

    def arm(self, name: str) -> NoiseSource:
        """Give one arm's step noise.

        Args:
            name: Name of the arm; arms have independent noise.

        Returns:
            A function of step and draw, standard normal, fp32 [1].
        """
        return lambda step, draw: self._draw(name, step, draw)

    def members(
        self, paths: Sequence[tuple[int, ...]], *names: int | str
    ) -> Float[Tensor, "member object view c h w"]:
        """Draw for members of every object's group, each named by its path from the root.

        A path is known to its member whatever the group's size, so a larger group, or a tree
        of more branches, only adds members.

        Args:
            paths: The branch taken at each place where the group divides, one path per member.
            *names: Names of the noise's purpose.

        Returns:
            Standard normal, fp32 [1].

        Examples:
            >>> noise = SeededNoise(seed=0, iteration=0, objects=[3], shape=(6, 4, 8, 8))
            >>> pair = noise.members([(0,), (1,)], "initial")
            >>> torch.equal(pair[1:], noise.members([(1,)], "initial"))
            True
        """
        return torch.stack([self._draw(*names, "member", *path) for path in paths])

    def _draw(self, *names: int | str) -> ObjectLatent:
        draws = [
            torch.randn(
                self.shape, generator=derived_generator(self.seed, self.iteration, index, *names)
            )
            for index in self.objects
        ]
        return torch.stack(draws).to(self.device)
