"""One prompt sampled for the page: two samples from the same noise, and their scores."""

from collections.abc import Sequence
from dataclasses import dataclass

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.config.loading import sampling_config
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.evaluation.evaluate import sample_objects
from mvczigal_ref.report.run_content import score_tables
from mvczigal_ref.shapes import Images
from mvczigal_ref.system import System, with_sampling
from mvczigal_ref.system.rig import rig_of
from mvczigal_ref.tiny_world.grammar import parse
from mvczigal_ref.training.prompts import in_world

__all__ = ["LONGEST_PROMPT", "MOST_STEPS", "Played", "Playground", "Request"]

MOST_STEPS = 50
"""Largest number of denoising steps that a page takes, as others wait for it."""

LONGEST_PROMPT = 1000
"""Largest length of a prompt [characters]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Wish of a person at the page."""

    prompt: str
    """Prompt of one object."""

    seed: int = 0
    """Seed of the noise."""

    steps: int = 8
    """Denoising steps."""

    guidance: float = 1.0
    """Guidance scale [1]."""

    zigzag: bool = False
    """Whether the second sample is by ZMV-Sampling."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Played:
    """Samples of one prompt, with scores."""

    before: Images | None
    """Sample to compare with: of the policy before training, or by plain sampling; None where the
    request asks for no difference."""

    after: Images
    """Sample that was asked for; of one object."""

    azimuths: tuple[float, ...]
    """Azimuth of each view's camera [deg]."""

    scores: list[tuple[str, float | None, float]]
    """Name of each score, its number before, and after [reward units]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Playground:
    """Policy that a page samples, and what it is compared with."""

    config: TrainConfig
    """Settings; those on the page change ``sampler`` and the seed."""

    system: System
    """Policy."""

    base: System | None = None
    """Policy before training, of a run."""

    scored: bool = True
    """Whether the systems hold scorers."""

    @property
    def zigzags(self) -> bool:
        """Whether the sampler can be inverted, as ZMV-Sampling needs."""
        return not self.config.sampler.is_flow

    def first_request(self, prompt: str) -> Request:
        """Give the request that the page opens with.

        Args:
            prompt: Prompt to begin with.

        Returns:
            The settings of the policy, with zigzag where nothing else would be compared.
        """
        sampler = self.config.sampler
        return Request(
            prompt=prompt, seed=self.config.run.seed,
            steps=min(sampler.evaluation_steps or sampler.num_steps, MOST_STEPS),
            guidance=sampler.guidance_scale, zigzag=self.zigzags and self.base is None,
        )  # fmt: skip

    def play(self, request: Request) -> Played:
        """Sample a prompt, twice where there is something to compare, from the same noise.

        Args:
            request: Prompt and settings.

        Returns:
            Images and scores.

        Raises:
            ConfigError: If the prompt or a setting is refused; nothing is sampled then.
            NonFiniteError: If latents or images are not finite.
        """
        prompt, config = self._checked(request)
        after = self._sample(self.system, prompt, config, zigzag=request.zigzag)
        before = None
        if self.base is not None:
            before = self._sample(self.base, prompt, config, zigzag=request.zigzag)
        elif request.zigzag:
            before = self._sample(self.system, prompt, config, zigzag=False)
        azimuths = tuple(rig_of(config.model).azimuth_deg) if after.shape[1] > 1 else (-90.0,)
        scores = self._scores(before, after, prompt, azimuths) if self.scored else []
        return Played(before=before, after=after, azimuths=azimuths, scores=scores)

    def _checked(self, request: Request) -> tuple[str, TrainConfig]:
        """Check a request, and write it as settings."""
        prompt = " ".join(request.prompt.split())
        if not prompt or len(prompt) > LONGEST_PROMPT:
            msg = f"`prompt` must have 1 to {LONGEST_PROMPT} characters; got {len(prompt)}."
            raise ConfigError(msg)
        if in_world(self.config, scored=self.scored):
            prompt = str(parse(prompt))
        if request.steps > MOST_STEPS:
            raise ConfigError(f"`steps` must be at most {MOST_STEPS}; got {request.steps}.")
        if request.zigzag and not self.zigzags:
            raise ConfigError("`zigzag` must be off where a flow model samples.")
        words = [
            f"run.seed={request.seed}",
            f"sampler.num_steps={request.steps}",
            "sampler.evaluation_steps=0",
            f"sampler.guidance_scale={request.guidance}",
        ]
        return prompt, sampling_config(self.config, words)

    def _sample(self, system: System, prompt: str, config: TrainConfig, *, zigzag: bool) -> Images:
        """Sample one object by the noise that `mvczigal sample` draws."""
        system = with_sampling(system, config)
        noise = system.noise(range(1), "sample", seed=config.run.seed)
        return sample_objects(system, [prompt], noise, config=config, zigzag=zigzag)

    def _scores(
        self, before: Images | None, after: Images, prompt: str, azimuths: Sequence[float]
    ) -> list[tuple[str, float | None, float]]:
        """Score both samples: one number per view, then one for all views together."""
        columns: list[list[float]] = []
        for images in (before, after):
            if images is not None:
                per_view, joint = self.system.score(images, [prompt])
                columns.append([*per_view[0].tolist(), joint[0].item()])
        names = [f"view at {azimuth:g}°" for azimuth in azimuths]
        names += ["all views together" if len(score_tables(self.config)) > 1 else "mean of views"]
        first = columns[0] if len(columns) > 1 else [None] * len(names)
        return list(zip(names, first, columns[-1], strict=True))
