"""One iteration of flow methods beside plain loops of the same algorithm: CPU seconds.

    python -m bench flow [--methods flow_grpo diffusion_nft mv_grpo] [--prompts 4] [--repeats 3]

Both train a LoRA of rank 8 on the same tiny FLUX, under the same judge, alternately, in one
process on one thread; of each the least of the repeats counts. The loops are `bench.flow_loops`.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.flow_loops import Plain, diffusion_nft, flow_grpo, mv_grpo
from mvczigal_ref.condition.protocol import ConditionEnhancer
from mvczigal_ref.config import TrainConfig, load_config
from mvczigal_ref.constraint import ConstraintState
from mvczigal_ref.distributed import World
from mvczigal_ref.iteration import run_iteration
from mvczigal_ref.models.backbone import FlowBackbone
from mvczigal_ref.models.flow.components import FlowComponents
from mvczigal_ref.models.flow.tiny import tiny_flow_components
from mvczigal_ref.models.lora import add_lora
from mvczigal_ref.recipes import recipe
from mvczigal_ref.system import build_system
from mvczigal_ref.system.enhancer import build_enhancer
from mvczigal_ref.training.optimizer import build_optimizer
from mvczigal_ref.training.tracking import StageTimer

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
METHODS = {
    "flow_grpo": "tiny_flow_grpo",
    "diffusion_nft": "tiny_diffusion_nft",
    "mv_grpo": "tiny_mv_grpo_vlm",
}
CPU = torch.device("cpu")


def judge(images: Tensor, texts: Sequence[str]) -> Tensor:
    """Judge by pixels alone: a measurement then is the network's."""
    return images.mean((2, 3, 4)) + 0.1 * images.std((2, 3, 4))


def prompts_of(count: int) -> list[str]:
    """Name balls of so many colours."""
    return [f"a {colour} ball with a pink nose" for colour in COLOURS[:count]]


def ours(config: TrainConfig, prompts: Sequence[str]) -> Callable[[], None]:
    """Bind one iteration after the other of the package."""
    scorers = {"per_view": judge, "joint": None}
    system = build_system(config, device=CPU, components=_network(), scorers=scorers)
    optimizer = build_optimizer(system.trained(), config.optim)
    old = None
    if config.objective.kind == "forward_process":
        old = {name: p.detach().clone() for name, p in system.trained().items()}
    indices, enhancer = itertools.count(), build_enhancer(config.condition, device=CPU)

    def iterate() -> None:
        run_iteration(
            system, optimizer, ConstraintState(), prompts, iteration=next(indices), config=config,
            world=World(), timer=StageTimer(), enhancer=enhancer, old=old,
        )  # fmt: skip

    return iterate


def plain(name: str, config: TrainConfig, prompts: Sequence[str]) -> Callable[[], None]:
    """Bind one iteration after the other of a plain loop."""
    parts = _network()
    for network in (parts.policy, parts.vae, *parts.text_encoders):
        network.requires_grad_(requires_grad=False)
    targets = parts.policy.lora_targets
    add_lora(parts.policy.transformer, rank=8, alpha=8.0, seed=0, targets=targets)
    here = Plain(
        parts, prompts, steps=config.sampler.num_steps, members=config.rollout.members,
        judge=judge, without_lora=FlowBackbone(components=parts, image_size=32).without_lora,
    )  # fmt: skip
    if name == "flow_grpo":
        return lambda: flow_grpo(here)
    if name == "diffusion_nft":
        old = [p.detach().clone() for p in here.trained]
        return lambda: diffusion_nft(here, old)
    enhancer = build_enhancer(config.condition, device=CPU)
    return lambda: mv_grpo(here, lambda prompt, images: _captions(enhancer, prompt, images))


def _captions(enhancer: ConditionEnhancer | None, prompt: str, images: Tensor) -> list[str]:
    """Describe each sample of a prompt."""
    assert enhancer is not None
    (captions,) = enhancer([prompt], images[None, :, None], seed=0)
    return [caption.caption for caption in captions]


def _network() -> FlowComponents:
    return tiny_flow_components(seed=0, head_width=24)


def main() -> None:
    """Print a row per method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--prompts", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    prompts = prompts_of(options.prompts)
    size = (f"run.objects_per_iteration={options.prompts}", f"run.objects_per_slice={len(prompts)}")
    print("| method | plain loop [s] | package [s] | ratio |\n| --- | --- | --- | --- |")
    for name in options.methods:
        config = load_config(recipe(METHODS[name]), overrides=size)
        loops = {"plain": plain(name, config, prompts), "package": ours(config, prompts)}
        seconds: dict[str, list[float]] = {side: [] for side in loops}
        for _ in range(1 + options.repeats):
            for side, iterate in loops.items():
                start = time.process_time()
                iterate()
                seconds[side].append(time.process_time() - start)
        # The first of each warms up.
        best = {side: min(times[1:]) for side, times in seconds.items()}
        ratio = best["plain"] / best["package"]
        print(f"| {name} | {best['plain']:.2f} | {best['package']:.2f} | 1/{ratio:.2f} |")


if __name__ == "__main__":
    main()
