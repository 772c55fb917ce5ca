"""Watch: the held-out guard's scores at every check of a run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from mvczigal_ref.advantage.standardise import check_rewards
from mvczigal_ref.config import TrainConfig
from mvczigal_ref.distributed import World
from mvczigal_ref.evaluation.evaluate import sample_objects
from mvczigal_ref.evaluation.guard import GuardCheck, mean_pairwise_distance
from mvczigal_ref.evaluation.slices import SampleSlices
from mvczigal_ref.shapes import Images
from mvczigal_ref.system import System

__all__ = ["Watch", "object_features"]

_OCCASION = "guard"  # its noise is apart from every iteration's and evaluation's

_FEATURES = "features"  # name of the table of them

_GRID = 8  # colour means a side


@dataclass(frozen=True, kw_only=True, slots=True)
class Watch:
    """The guard's look at the held-out prompts, always from the same noises."""

    system: System
    """Network, sampler, trained and watched scorers."""

    prompts: Sequence[str]
    """Prompts that are scored."""

    config: TrainConfig
    """Settings of the run."""

    world: World
    """This process among all."""

    def due(self, finished: int) -> bool:
        """Say whether the guard looks now.

        Args:
            finished: Iterations done.

        Returns:
            True before the first iteration and every ``guard.every`` of them; never without.
        """
        every = self.config.guard.every
        return every > 0 and finished % every == 0

    def __call__(self, iteration: int) -> tuple[GuardCheck, dict[str, float]]:
        """Sample every prompt from several noises and score what comes out.

        Trained on are the rewards that the advantage's mode reads; one that it leaves out is
        watched. The joint reward tells how well the views agree.

        Args:
            iteration: Iterations finished.

        Returns:
            Check for the rule, one number per prompt; and the metrics' means, diversity among
            them. The same in every process.

        Raises:
            NonFiniteError: If a score is not finite; names its scorer, prompt, noise and view.
            ScorerUnavailableError: If a scorer's service is out.
        """
        prompts, guard = len(self.prompts), self.config.guard
        tables, rows = self._tables()
        features = rows.view(guard.noises, prompts, -1).transpose(0, 1)
        scores = {name: t.double().view(guard.noises, prompts) for name, t in tables.items()}
        check_rewards(**scores)
        means = {name: tuple(table.mean(0).tolist()) for name, table in scores.items()}
        mode = self.config.advantage.mode
        trained = [mode] if mode in ("per_view", "joint") else ["per_view", "joint"]
        if guard.noises > 1:
            means["diversity"] = tuple(mean_pairwise_distance(features.double()).tolist())
        metrics = {f"guard/{name}": sum(row) / prompts for name, row in means.items()}
        if not guard.diversity:
            means.pop("diversity", None)
        check = GuardCheck(
            iteration=iteration,
            trained={name: means[name] for name in trained},
            watched={name: row for name, row in means.items() if name not in trained},
        )
        return check, metrics

    @torch.no_grad()
    def _tables(self) -> tuple[dict[str, Tensor], Tensor]:
        """Scores and features, one row per sample, noise by noise through the prompts."""
        system, run = self.system, self.config.run
        slices = SampleSlices(
            prompts=self.prompts, num_noises=self.config.guard.noises,
            size=run.objects_per_slice, world=self.world,
        )  # fmt: skip
        trained, others = [], []
        for part in slices.mine:
            texts, noise = slices.texts(part), system.noise(part, _OCCASION, seed=0)
            images = sample_objects(system, texts, noise, config=self.config, world=self.world)
            with self.world.agreed():
                trained.append(system.tables(images, texts))
                others.append(self._watched(images, texts))
        rewards, watched = slices.gathered(trained), slices.gathered(others)
        features = watched.pop(_FEATURES)
        slices.require_finite("reward", rewards)
        slices.require_finite("guard", watched)
        per_view, joint = system.totals(rewards)
        scores = {"per_view": per_view, "joint": joint, **watched}
        means = {name: t.mean(-1) if t.ndim > 1 else t for name, t in scores.items()}
        return {name: values.cpu() for name, values in means.items()}, features.cpu()

    def _watched(self, images: Images, texts: Sequence[str]) -> dict[str, Tensor]:
        """Ask every scorer that is not trained on, and describe the images."""
        system = self.system
        scorers = {**system.watched_per_view, **system.watched_joint}
        tables = {name: scorer(images, texts) for name, scorer in scorers.items()}
        return tables | {_FEATURES: object_features(images, list(system.watched_per_view.values()))}


def object_features(
    images: Images, scorers: Sequence[Callable[..., Tensor]] = ()
) -> Float[Tensor, "object feature"]:
    """Describe each object by one vector, for distances between samples.

    Args:
        images: Decoded views in [0, 1].
        scorers: Scorers, the first of which that has a method ``image_features``, from images to
            one vector per view, is asked. If none has, a view's vector is its colour, averaged
            over squares of an eighth of its edge.

    Returns:
        The views' vectors one after the other [1, or feature units].

    Examples:
        >>> object_features(torch.zeros(2, 6, 3, 32, 32)).shape
        torch.Size([2, 1152])
    """
    for scorer in scorers:
        described = getattr(scorer, "image_features", None)
        if described is not None:
            features: Tensor = described(images)
            return features.flatten(1)
    pooled = adaptive_avg_pool2d(images.flatten(0, 1), _GRID)
    return pooled.reshape(images.shape[0], -1)
