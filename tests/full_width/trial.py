"""One training run of a wide network, and the checks that both families share."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn

from mvczigal_ref.config import TrainConfig
from mvczigal_ref.distributed import World
from mvczigal_ref.training.tracking import peak_memory, read_metrics
from mvczigal_ref.training.trainer import train

CPU = torch.device("cpu")
PROMPT = "a red cube with a white nose"
SHARPEST = 2.0**16
"""Loss scale that GradScaler starts with [1]."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """One iteration's metrics, the run folder, and the network with its LoRA still inside."""

    dtype: str
    folder: Path
    metrics: Mapping[str, Any]
    components: Any
    network: Any
    answer: Callable[[], Tensor]
    """Network output on fixed states, without gradient."""

    @property
    def policy(self) -> Path:
        """Folder of the trained LoRA."""
        return self.folder / "policy"

    def lora(self) -> dict[str, nn.Parameter]:
        """Parameters of the LoRA inside the network."""
        return {n: p for n, p in self.network.named_parameters() if ".lora_" in n}


def trained(
    config: TrainConfig, components: Any, network: Any, folder: Path, answer: Callable[[], Tensor]
) -> Trained:
    """Train as the command does; the held-out prompt is the training prompt."""
    prompts = folder / "prompts.txt"
    prompts.write_text(PROMPT, "utf-8")
    train(config, folder / "run", world=World(), components=components, held_out=[PROMPT])
    (row,) = read_metrics(folder / "run" / "metrics.jsonl")
    return Trained(
        dtype=config.model.dtype, folder=folder / "run", metrics=row, components=components,
        network=network, answer=answer,
    )  # fmt: skip


def cells(run: Trained) -> dict[str, str]:
    """Table cells of a run: sizes, stages and the metrics that must be exact or non-zero."""
    frozen = sum(p.numel() for n, p in run.network.named_parameters() if ".lora_" not in n)
    seconds = {k.removeprefix("seconds/"): v for k, v in run.metrics.items() if "seconds/" in k}
    return {
        "parameters": f"{frozen:,}",
        "of the LoRA": f"{sum(p.numel() for p in run.lora().values()):,}",
        "rollout s": f"{seconds['rollout']:.0f}",
        "update s": f"{seconds['update']:.0f}",
        "peak GiB": f"{(peak_memory(CPU) or 0) / 2**30:.1f}",
        "replay deviation": f"{run.metrics['replay_deviation']:g}",
        "gradient norm": f"{run.metrics['grad_norm']:.2e}",
    }


def assert_learned(run: Trained) -> None:
    """Fail unless every first ratio was 1 and every B, zero before, has moved."""
    moved = {name: bool(p.any()) for name, p in run.lora().items() if ".lora_B." in name}
    assert run.metrics["replay_deviation"] == 0.0
    assert run.metrics["grad_norm"] > 0.0
    assert moved
    assert [name for name, value in moved.items() if not value] == []


def gradients_of(run: Trained, loss: Callable[[], Tensor], *scales: float) -> list[Tensor]:
    """Gradient of every B at each loss scale, the scale taken out again: flat vectors."""
    outer = [p for name, p in run.lora().items() if ".lora_B." in name]
    with torch.enable_grad():
        value = loss()
        found = [
            torch.autograd.grad(value, outer, value.new_tensor(scale), retain_graph=True)
            for scale in scales
        ]
    return [
        torch.cat([g.flatten().double() for g in gradients]) / scale
        for gradients, scale in zip(found, scales, strict=True)
    ]


def survival(gradient: Tensor) -> str:
    """Table cell: norm, and share of exact zeros."""
    return f"{float(gradient.norm()):.2e}, {float((gradient == 0).double().mean()):.2%} zeros"


def reloaded(run: Trained, pipeline: Callable[[], Any]) -> dict[str, float]:
    """Largest difference of outputs to the trained network's: without the LoRA, and reloaded.

    Takes the LoRA out of the network, so it comes last.
    """
    before = run.answer()
    started = time.monotonic()
    difference = {}

    def differs(name: str) -> None:
        difference[name] = float((run.answer() - before).abs().max())

    run.network.unload_lora()
    differs("base")
    wrapped = PeftModel.from_pretrained(run.network, run.policy)
    differs("peft")
    wrapped.unload()
    stock = pipeline()
    stock.load_lora_weights(run.policy, weight_name="pytorch_lora_weights.safetensors")
    differs("diffusers")
    stored = load_file(run.policy / "pytorch_lora_weights.safetensors")
    held = {n.replace(".default_0.", "."): p for n, p in run.lora().items()}
    for name, value in stored.items():
        parameter = held[name.partition(".")[2]]
        # diffusers holds a LoRA in the type of the layers that it adapts.
        assert torch.equal(parameter, value.to(parameter.dtype)), name
    assert len(stored) == len(held)
    print(f"reloaded twice in {time.monotonic() - started:.0f} s")
    return difference


def step_loss(mean: Tensor, std: float, *, weight: float, elements: int) -> Tensor:
    """Share of one step in the loss of a run, for actions one deviation off the mean.

    `elements` is the number over which a run of full resolution averages a log-density, `weight`
    the derivative of its loss by that density.
    """
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
    action = mean.detach() + std * noise
    return weight * (-((action - mean) ** 2) / (2 * std**2)).sum() / elements


def assert_gradients_survive(run: Trained, loss: Callable[[], Tensor], cells: dict) -> None:
    """Fail unless half precision keeps most of the gradient at the scale 2^16, and say what it is.

    bf16 has the exponents of fp32, so that a power of two changes no bit of it.
    """
    plain, scaled = gradients_of(run, loss, 1.0, SHARPEST)
    cells.update({"gradient, plain": survival(plain), "scaled by 2^16": survival(scaled)})
    assert scaled.isfinite().all()
    assert float((scaled == 0).double().mean()) < 0.5
    if run.dtype == "bf16":
        assert torch.equal(plain, scaled)
    else:
        assert float((plain == 0).double().mean()) > 0.5
