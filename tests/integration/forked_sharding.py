"""Processes that are forked with everything imported, and train a small UNet in parts."""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from mvczigal_ref.distributed import World
from mvczigal_ref.models import sharding
from mvczigal_ref.models.lora import add_lora
from mvczigal_ref.models.sharding import shard_network, whole
from mvczigal_ref.models.unet.policy import SINGLE_VIEW_LORA_TARGETS
from mvczigal_ref.models.unet.tiny import tiny_unet_components
from mvczigal_ref.training.origin import write_origin
from mvczigal_ref.training.tensor_groups import write_groups
from tests.integration import faults

KINDS = ("full", "lora")
ROWS = 4


def trained(kind: str, here: World, parts: Path | None = None) -> dict[str, torch.Tensor]:
    """Take two optimiser steps, each process with its share of the rows; write what is cut."""
    network, generator = tiny_unet_components("sdxl", seed=0).policy.unet, torch.Generator()
    network.requires_grad_(kind == "full")
    if kind == "lora":
        add_lora(network, rank=2, alpha=4.0, seed=0, targets=SINGLE_VIEW_LORA_TARGETS)
    if here.size > 1:
        shard_network(network, here)
    parameters = {n: p for n, p in network.named_parameters() if p.requires_grad}
    # AdamW would divide rounding by rounding: a bias before a normalisation has no gradient.
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    shapes = {"latent": (4, 8, 8), "text": (3, 16), "pooled": (8,), "goal": (4, 8, 8)}
    generator.manual_seed(1)
    rows = {n: torch.randn(ROWS, *shape, generator=generator) for n, shape in shapes.items()}
    mine = {n: value.chunk(here.size)[here.rank] for n, value in rows.items()}
    more = {"text_embeds": mine["pooled"], "time_ids": torch.ones(ROWS // here.size, 6)}
    results = {}
    for step in range(2):
        output = network(mine["latent"], 100, mine["text"], added_cond_kwargs=more)[0]
        loss = (output - mine["goal"]).square().mean()
        loss.backward()
        here.mean_gradients(parameters.values())
        gradients = [whole(p.grad) for p in parameters.values()]
        results[f"{step}.loss"] = here.gather_objects(loss.detach()[None]).mean()
        results[f"{step}.grad_norm"] = torch.cat([g.flatten() for g in gradients]).norm()
        optimizer.step()
        optimizer.zero_grad()
    if parts is not None:
        parts.mkdir(exist_ok=True)
        write_groups(parts, {"policy": parameters})
        record = {"place": "one", "iteration": 2, "sha256": "of it"}
        with faults.patched(sharding, "_at_engine", None):  # nobody gathers anything
            write_origin(parts.with_name("run"), record, parameters, here)
    return results | {n: whole(p.detach()).clone() for n, p in parameters.items()}


def work(folder: Path, rank: int, size: int) -> None:
    """Train both kinds as one of several processes."""
    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=size)
    here = World(rank=rank, size=size, reduction="engine", sharded=True)
    for kind in KINDS:
        results = trained(kind, here, folder / "parts" if kind == "full" else None)
        if rank == 0:
            save_file(results, folder / f"{kind}.safetensors")
    torch.distributed.destroy_process_group()


def fork(folder: Path, size: int) -> int:
    """Start the processes; give the number of those that failed."""
    torch.set_num_threads(1)
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            try:
                work(folder, rank, size)
            except BaseException:
                sys.excepthook(*sys.exc_info())
                os._exit(1)
            os._exit(0)
        children.append(child)
    return sum(os.waitpid(child, 0)[1] != 0 for child in children)


if __name__ == "__main__":
    sys.exit(fork(Path(sys.argv[1]), int(sys.argv[2])))
