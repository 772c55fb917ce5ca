"""One slice of pairs, and ways to sample it, replay it, learn from it and compare."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.distributed import World
from mvczigal_ref.iteration import draw_pair
from mvczigal_ref.objective.reward_difference import reward_difference_gradients
from mvczigal_ref.records import Conditioning, PairedRollout, Trajectory
from mvczigal_ref.rollout.noise import SeededNoise
from mvczigal_ref.settings import Dtype
from mvczigal_ref.system import System
from mvczigal_ref.training_state import TrainingState, begin
from mvczigal_ref.update import PairBatch, UpdateSettings, accumulate_pairs, replay_log_prob

__all__ = ["Trial", "copies", "fingerprints", "gradients", "moments", "put_back"]

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

    def learn(self, pair: PairedRollout, step: int, *, advantage: float) -> None:
        """Leave the gradient of the run's loss in the parameters, for one advantage of all."""
        wanted = self.config.objective
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
                clip_range=wanted.clip_range if wanted.clip else float("inf"),
                temperature=wanted.temperature,
            ),
            weight=1.0,
            on_policy=True,
            settings=UpdateSettings(
                steps=[step],
                clip_range=wanted.clip_range,
                guidance_scale=self.config.sampler.guidance_scale,
                camera_scale=self.config.sampler.camera_scale,
                reduction=wanted.reduction,
            ),
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


def put_back(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Give parameters their values back, and forget their gradients."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(values[name])
            parameter.grad = None
