"""Plain loops of three flow methods: stock diffusers and PEFT, a forward pass per sample and text.

Each follows its paper and the order of its released trainer: nothing is computed once for several
samples, texts or steps but the features of a batch of prompts. They are what `bench.flow` measures
the package against.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from mvczigal_ref.models.flow.components import FlowComponents

__all__ = ["Plain", "diffusion_nft", "flow_grpo", "mv_grpo"]

NOISE_SCALE, CLIP, KL_WEIGHT = 0.7, 1e-2, 1e-4


class Plain:
    """A stock transformer with a LoRA, its optimiser, and a batch of prompts."""

    def __init__(
        self, parts: FlowComponents, prompts: Sequence[str], *, steps: int, members: int,
        judge: Callable[[Tensor, Sequence[str]], Tensor],
        without_lora: Callable[[], AbstractContextManager[None]],
    ) -> None:  # fmt: skip
        self.parts, self.prompts, self.members, self.judge = parts, list(prompts), members, judge
        self.without_lora = without_lora
        self.trained = [p for p in parts.policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4)
        levels = torch.linspace(1.0, 0.0, steps + 1)
        self.levels = (3.0 * levels / (1.0 + 2.0 * levels)).tolist()

    def velocity(self, x: Tensor, level: float, texts: Sequence[str]) -> Tensor:
        """Predict for one text per row; texts are encoded once per batch of a prompt."""
        return self.parts.policy(
            x, torch.tensor(1000.0 * level), self.encoded(texts), guidance_scale=1.0
        )

    def encoded(self, texts: Sequence[str]) -> object:
        """Encode texts, each different one once."""
        with torch.no_grad():
            names = list(dict.fromkeys(texts))
            once = self.parts.build_conditioning(names)
        if len(names) == 1:
            return once.repeat(len(texts))
        return self.parts.build_conditioning(list(texts))

    def images(self, x: Tensor) -> Tensor:
        """Decode."""
        with torch.no_grad():
            return self.parts.decode(x)

    def advantages(self, images: Tensor, texts: Sequence[str]) -> Tensor:
        """Compare the rewards of a prompt's samples."""
        reward = self.judge(images[:, None], texts).flatten()
        return (reward - reward.mean()) / (reward.std() + 1e-4)

    def step(self) -> None:
        """Change the parameters."""
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def _kernel(v: Tensor, x: Tensor, high: float, low: float, scale: float) -> tuple[Tensor, float]:
    """Give mean and deviation of Flow-GRPO's step (arXiv:2505.05470, equation 9)."""
    spread = scale * math.sqrt(high / (1.0 - (low if high == 1.0 else high)))
    score = -(x + (1.0 - high) * v) / high
    mean = x - (high - low) * v + 0.5 * spread**2 * (high - low) * score
    return mean, spread * math.sqrt(high - low)


def _density(y: Tensor, mean: Tensor, std: float) -> Tensor:
    return (-((y - mean) ** 2) / (2.0 * std**2) - math.log(std)).mean((1, 2, 3))


def _sample(
    here: Plain, prompt: str, window: Sequence[int], *, shared: bool
) -> tuple[list[tuple[int, Tensor, Tensor, Tensor]], Tensor]:
    """Sample one group, member by member in one batch; give its decisions and its latents."""
    shape = (here.members, here.parts.policy.transformer.config.in_channels // 4, 8, 8)
    texts, decisions = [prompt] * here.members, []
    x = torch.randn(1, *shape[1:]).expand(shape).clone() if shared else torch.randn(shape)
    with torch.no_grad():
        for step, (high, low) in enumerate(zip(here.levels, here.levels[1:], strict=False)):
            scale = NOISE_SCALE if step in window else 0.0
            mean, std = _kernel(here.velocity(x, high, texts), x, high, low, scale)
            y = mean + std * torch.randn_like(mean)
            if step in window:
                decisions.append((step, x, y, _density(y, mean, std)))
            x = y
    return decisions, x


def _learn(
    here: Plain, decision: tuple[int, Tensor, Tensor, Tensor], texts: Sequence[str],
    advantage: Tensor, before: Tensor, share: float,
) -> None:  # fmt: skip
    """Add the clipped loss of one decision under some texts."""
    step, x, y, _ = decision
    high, low = here.levels[step : step + 2]
    mean, std = _kernel(here.velocity(x, high, texts), x, high, low, NOISE_SCALE)
    ratio = (_density(y, mean, std) - before).exp()
    clipped = ratio.clamp(1.0 - CLIP, 1.0 + CLIP)
    loss = torch.maximum(-advantage * ratio, -advantage * clipped).mean()
    (share * loss).backward()


def flow_grpo(here: Plain) -> None:
    """Flow-GRPO (arXiv:2505.05470): every step but the last is replayed for every sample."""
    window = range(len(here.levels) - 2)
    groups = [_sample(here, prompt, window, shared=True) for prompt in here.prompts]
    judged = [
        here.advantages(here.images(x), [prompt] * here.members)
        for prompt, (_, x) in zip(here.prompts, groups, strict=True)
    ]
    share = 1.0 / (len(here.prompts) * len(window))
    for prompt, (decisions, _), advantage in zip(here.prompts, groups, judged, strict=True):
        for decision in decisions:
            texts = [prompt] * here.members
            _learn(here, decision, texts, advantage, decision[3], share)
    here.step()


def mv_grpo(here: Plain, captions: Callable[[str, Tensor], Sequence[str]]) -> None:
    """MV-GRPO (arXiv:2603.12648): a decision is replayed under the prompt and every caption."""
    groups = [_sample(here, prompt, (0,), shared=True) for prompt in here.prompts]
    for prompt, (decisions, x) in zip(here.prompts, groups, strict=True):
        images = here.images(x)
        conditions = [prompt, *captions(prompt, images)]
        share = 1.0 / (len(here.prompts) * len(conditions))
        for text in conditions:
            texts = [text] * here.members
            advantage = here.advantages(images, texts)
            for decision in decisions:
                step, state, y, _ = decision
                high, low = here.levels[step : step + 2]
                with torch.no_grad():
                    v = here.velocity(state, high, texts)
                    before = _density(y, *_kernel(v, state, high, low, NOISE_SCALE))
                _learn(here, decision, texts, advantage, before, share)
    here.step()


def diffusion_nft(here: Plain, old: list[Tensor]) -> None:
    """DiffusionNFT (arXiv:2509.16117): samples of the old policy are noised and fitted."""

    def swapped(values: Sequence[Tensor]) -> list[Tensor]:
        present = [p.detach().clone() for p in here.trained]
        for parameter, value in zip(here.trained, values, strict=True):
            parameter.data.copy_(value)
        return present

    groups = []
    for prompt in here.prompts:
        present = swapped(old)
        _, x = _sample(here, prompt, (), shared=False)
        swapped(present)
        groups.append((prompt, x, here.advantages(here.images(x), [prompt] * here.members)))
    for prompt, clean, advantage in groups:
        texts, level = [prompt] * here.members, 0.05 + 0.9 * float(torch.rand(()))
        noise = torch.randn_like(clean)
        x = (1.0 - level) * clean + level * noise
        with torch.no_grad():
            present = swapped(old)
            before = here.velocity(x, level, texts)
            swapped(present)
            with here.without_lora():
                reference = here.velocity(x, level, texts)
        v = here.velocity(x, level, texts)
        share = (advantage / 10.0).clamp(-1.0, 1.0).add(1.0).div(2.0)
        fits = []
        for sign in (1.0, -1.0):
            image = x - level * (before + sign * (v - before))
            error = (image - clean).abs().mean((1, 2, 3), keepdim=True).clamp(min=1e-5).detach()
            fits.append(((image - clean) ** 2 / error).mean((1, 2, 3)))
        loss = (share * fits[0] + (1.0 - share) * fits[1]).mean()
        loss = loss + KL_WEIGHT * ((v - reference) ** 2).mean()
        (loss / len(groups)).backward()
    here.step()
    for value, parameter in zip(old, here.trained, strict=True):
        value.copy_(parameter.detach())
