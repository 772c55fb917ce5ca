"""Turn finished pretraining into the folder of weights that the package ships."""

import json
import shutil
from pathlib import Path

import torch
from matplotlib.figure import Figure

from mvczigal_ref.files import atomic_write
from mvczigal_ref.gate import Gate, gate
from mvczigal_ref.models.components import load_components
from mvczigal_ref.pictures import contact_sheet, save_png
from mvczigal_ref.world.grammar import split_prompts

__all__ = ["ship"]

_SHOWN = 10  # held-out prompts on the sample sheet
_KINDS = ("real", "8 steps", "4 steps", "2 steps")


def ship(work: Path, folder: Path, *, guidance_scale: float = 2.0, noises: int = 2) -> Gate:
    """Store the few-step weights in half precision, judge them, and show how they came to be.

    Args:
        work: Folder that pretraining wrote: stages, settings and log.
        folder: Where the weights go, with ``gate.md``, ``loss.png``, ``samples.png``, settings
            and log; an older one is replaced.
        guidance_scale: Guidance of the samples that are judged [1].
        noises: Initial noises a held-out prompt.

    Returns:
        The gate's table, measured on the stored weights.

    Raises:
        FileNotFoundError: If pretraining has not finished its last stage.
    """
    if not (work / "fewstep" / "unet").is_dir():
        msg = f"{str(work / 'fewstep')!r} must hold the few-step weights; run pretraining first."
        raise FileNotFoundError(msg)
    shutil.rmtree(folder, ignore_errors=True)
    load_components(work / "fewstep").save(folder, dtype=torch.float16)
    for name in ("pretrain_config.json", "pretrain_log.jsonl"):
        shutil.copy(work / name, folder / name)
    found = gate(load_components(folder), seed=0, noises=noises, guidance_scale=guidance_scale)
    atomic_write(folder / "gate.md", f"Guidance {guidance_scale:g}, held-out prompts.\n\n{found}\n")
    _loss_curve(folder)
    _sample_sheet(found, folder)
    return found


def _sample_sheet(found: Gate, folder: Path) -> None:
    """Show some held-out prompts: real, and sampled in few steps."""
    _, prompts = split_prompts()
    chosen = [i * len(prompts) // _SHOWN for i in range(_SHOWN)]
    rows = [found.images[kind][i].clamp(0, 1) for i in chosen for kind in _KINDS]
    labels = [f"{prompts[i]}: {kind}" for i in chosen for kind in _KINDS]
    save_png(folder / "samples.png", contact_sheet(torch.stack(rows), scale=2, row_labels=labels))


def _loss_curve(folder: Path) -> None:
    """Draw each stage's loss over its steps."""
    lines = [json.loads(x) for x in (folder / "pretrain_log.jsonl").read_text("utf-8").splitlines()]
    stages = list(dict.fromkeys(line["stage"] for line in lines))
    figure = Figure(figsize=(2.6 * len(stages), 2.4), layout="constrained")
    for axes, stage in zip(figure.subplots(1, len(stages)), stages, strict=True):
        own = [line for line in lines if line["stage"] == stage]
        axes.semilogy([line["step"] for line in own], [line["loss"] for line in own])
        axes.set(title=f"{stage} ({own[-1]['seconds'] - own[0]['seconds']:.0f} s)", xlabel="step")
    figure.savefig(folder / "loss.png", dpi=90)
