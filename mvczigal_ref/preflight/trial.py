"""One slice of pairs, and ways to sample it, replay it, learn from it and compare."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from mvczigal_ref.config import Dtype, TrainConfig
from mvczigal_ref.distributed import World
from mvczigal_ref.method.pairs import pair_update_settings
from mvczigal_ref.method.sample import draw_pair
from mvczigal_ref.objective.reward_difference import reward_difference_gradients
from mvczigal_ref.policy import Conditioning
from mvczigal_ref.records import PairedRollout, Trajectory
from mvczigal_ref.rollout.noise import SeededNoise
from mvczigal_ref.system import System
from mvczigal_ref.training.state import TrainingState, begin, initial_loss_scale
from mvczigal_ref.update.loss_scale import loss_scale_step
from mvczigal_ref.update.pairs import PairBatch, accumulate_pairs
from mvczigal_ref.update.replay import replay_log_prob

__all__ = ["Trial", "copies", "fingerprints", "gradients", "in_fp32", "moments", "put_back"]

_PROMPT = "a red cube with a white nose"


class Trial:
    """One slice of pairs, and ways to sample, replay and learn from it."""

    def __init__(self, system: System, config: TrainConfig, objects: int) -> None:
        self.system, self.config, self.objects = system, config, objects
        self.prompts = [_PROMPT] * objects

    @property
    def conditioning(self) -> Conditioning:
        """What the network is told."""
        return self.system.conditioning(self.prompts)

    def sample(self, storage: Dtype) -> PairedRollout:
        """Sample pairs as an iteration does."""
        config, system = self.config, self.system
        noise = SeededNoise(
            seed=config.run.seed, iteration="check", objects=range(self.objects),
            shape=system.latent_shape, device=system.device,
        )  # fmt: skip
        stored = replace(config, model=replace(config.model, storage_dtype=storage))
        return draw_pair(system, self.conditioning, noise, config=stored)

    def replay(self, arm: Trajectory, step: int, *, gradient: bool = True) -> Tensor:
        """Score one step's actions as an update does."""
        with torch.set_grad_enabled(gradient):
            return replay_log_prob(
                self.system.policy, self.system.sampler, arm, [step], self.conditioning,
                guidance_scale=self.config.sampler.guidance_scale,
                camera_scale=self.config.sampler.camera_scale,
                reduction=self.config.objective.reduction,
            ).detach()  # fmt: skip

    def learn(self, pair: PairedRollout, step: int, *, advantage: float) -> float:
        """Leave the gradient of the run's loss in the parameters, for one advantage of all.

        Every element weighs what it weighs in an optimiser step of the run, and the loss is
        scaled as there.

        Returns:
            The loss scale that the gradient was made with, before it was taken out [1].
        """
        state = initial_loss_scale(self.config)
        while state is not None:
            self._accumulate(pair, step, advantage, scale=state.scale)
            found = gradients(self.system).values()
            if state.scale == 1.0 or all(bool(gradient.isfinite().all()) for gradient in found):
                for gradient in found:
                    gradient /= state.scale
                return state.scale
            state = loss_scale_step(state, finite=False)
        self._accumulate(pair, step, advantage, scale=1.0)
        return 1.0

    def rescored(self, pair: PairedRollout, step: int) -> PairedRollout:
        """Give a step's actions the density that the network has now."""
        arms = {}
        for name in ("zigzag", "standard"):
            arm: Trajectory = getattr(pair, name)
            log_prob = arm.log_prob.clone()
            log_prob[step] = self.replay(arm, step, gradient=False)[0]
            arms[name] = replace(arm, log_prob=log_prob)
        return replace(pair, **arms)

    def _accumulate(
        self, pair: PairedRollout, step: int, advantage: float, *, scale: float
    ) -> None:
        run, settings = self.config, pair_update_settings(self.system, self.config)
        objects = run.run.objects_per_iteration / settings.optimizer_steps
        share = self.objects / (len(settings.steps) * objects)
        for parameter in self.system.trained().values():
            parameter.grad = None
        accumulate_pairs(
            self.system.policy,
            self.system.sampler,
            PairBatch(
                rollout=pair,
                conditioning=self.conditioning,
                advantage_gap=torch.full_like(pair.standard.log_prob[0], advantage),
                first_object=0,
            ),
            [step],
            partial(
                reward_difference_gradients,
                clip_range=run.objective.clip_range if run.objective.clip else float("inf"),
                temperature=run.objective.temperature,
            ),
            weight=scale * share,
            on_policy=True,
            settings=replace(settings, steps=[step]),
        )

    def state(self) -> TrainingState:
        """Begin a run, its threshold given so that nothing is scored."""
        given = replace(self.config.constraint, threshold_init=0.0)
        state = begin(self.system, replace(self.config, constraint=given), World(), self.prompts)
        state.set_learning_rate()
        return state

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """Every network, part by part."""
        yield "network", self.system.policy
        yield "autoencoder", self.system.components.vae
        for index, encoder in enumerate(self.system.backbone.text_encoders, 1):
            yield f"text encoder {index}", encoder


def fingerprints(trial: Trial) -> dict[str, int]:
    """Sum up the bits of everything that does not train, where it is."""
    trained = {id(p) for p in trial.system.trained().values()}
    return {
        f"{part}: {name}": int(_bits(tensor).sum(dtype=torch.int64))
        for part, module in trial.modules()
        for name, tensor in (*module.named_parameters(), *module.named_buffers())
        if id(tensor) not in trained
    }


def _bits(tensor: Tensor) -> Tensor:
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(whole[tensor.element_size()])


def gradients(system: System) -> dict[str, Tensor]:
    """Find the gradients that there are."""
    return {name: p.grad for name, p in system.trained().items() if p.grad is not None}


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copy everything that an optimiser remembers."""
    return {
        f"optimiser {index} {name}": value.detach().clone()
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def copies(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy values."""
    return {name: p.detach().clone() for name, p in parameters.items()}


@contextmanager
def in_fp32(network: nn.Module) -> Iterator[bool]:
    """Widen what a network holds in half precision, for a while; no bit of it is lost.

    Yields:
        Whether there was anything to widen.
    """
    held = [*network.parameters(), *network.buffers()]
    half = [(t, t.dtype) for t in held if t.dtype in (torch.float16, torch.bfloat16)]
    for tensor, _ in half:
        tensor.data = tensor.data.float()
    try:
        yield bool(half)
    finally:
        for tensor, dtype in half:
            tensor.data = tensor.data.to(dtype)


def put_back(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Give parameters their values back, and forget their gradients."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])
            parameter.grad = None
