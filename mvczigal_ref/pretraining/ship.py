"""Turn finished pretraining into the folders of weights that the package ships."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch.nn.functional import pad

from mvczigal_ref.files import atomic_write
from mvczigal_ref.models.components import Components, load_components
from mvczigal_ref.models.flow.loading import load_flow
from mvczigal_ref.models.schedulers import sdxl_scheduler
from mvczigal_ref.pictures import contact_sheet, save_png
from mvczigal_ref.pipeline import TextToMultiviewPipeline
from mvczigal_ref.pretraining.flow import LAST_STAGE
from mvczigal_ref.pretraining.gate import Gate
from mvczigal_ref.pretraining.gate_flow import gate_flow
from mvczigal_ref.pretraining.gate_multiview import gate
from mvczigal_ref.shapes import Images
from mvczigal_ref.tiny_world.grammar import split_prompts
from mvczigal_ref.tiny_world.render import IMAGE_SIZE
from mvczigal_ref.tiny_world.scene import AZIMUTHS, WORLD_RIG

__all__ = ["ship", "ship_flow"]

_SHOWN = 10  # held-out prompts on the sample sheet


_KINDS = ("real", "8 steps", "4 steps", "2 steps")


def ship(work: Path, folder: Path, *, guidance_scale: float = 2.0, noises: int = 2) -> Gate:
    """Store the few-step weights in half precision, judge them, and plot their training.

    Args:
        work: Folder that pretraining wrote, with stages, settings and log.
        folder: Folder for the weights, which is a pipeline's, ``gate.md``, ``loss.png``,
            ``samples.png``, settings and log; an older one is replaced.
        guidance_scale: Guidance scale of the judged samples [1].
        noises: Initial noises per held-out prompt [1].

    Returns:
        The gate's table, measured on the stored weights.

    Raises:
        FileNotFoundError: If pretraining has not finished its last stage.
    """
    _start(work, "fewstep", "unet", folder)
    load_components(work / "fewstep").save(folder, dtype=torch.float16)
    stored = load_components(folder)
    _index(stored, folder)
    table = gate(stored, seed=0, noises=noises, guidance_scale=guidance_scale)
    atomic_write(folder / "gate.md", f"Guidance {guidance_scale:g}, held-out prompts.\n\n{table}\n")
    _loss_curve(folder)
    _sample_sheet({kind: table.images[kind] for kind in _KINDS}, folder)
    return table


def ship_flow(
    work: Path,
    folder: Path,
    *,
    guidance_scales: Sequence[float] = (3.0, 1.0, 2.0, 4.0),
    noises: int = 4,
) -> Gate:
    """Store the flow weights in half precision, judge them, and plot their training.

    Args:
        work: Folder that the flow model's pretraining wrote, with stages, settings and log.
        folder: Folder for the weights and the files of :func:`ship`; an older one is replaced.
        guidance_scales: Guidance scales of the judged samples, the recommended one first [1].
        noises: Initial noises per held-out prompt [1].

    Returns:
        The gate's table at the first guidance scale, measured on the stored weights.

    Raises:
        FileNotFoundError: If pretraining has not finished its last stage.
    """
    _start(work, LAST_STAGE, "transformer", folder)
    max_tokens = json.loads((work / "pretrain_config.json").read_text("utf-8"))["max_tokens"]
    load_flow(work / LAST_STAGE, text_length=max_tokens).save(folder, dtype=torch.float16)
    stored = load_flow(folder, text_length=max_tokens)
    tables = [
        gate_flow(stored, seed=0, noises=noises, guidance_scale=scale) for scale in guidance_scales
    ]
    text = [
        f"Guidance {scale:g}, held-out prompts.\n\n{table}\n"
        for scale, table in zip(guidance_scales, tables, strict=True)
    ]
    atomic_write(folder / "gate.md", "\n".join(text))
    _loss_curve(folder)
    images = tables[0].images
    kinds = {"real": images["real"][:, : len(AZIMUTHS)]}
    _sample_sheet(kinds | {k: v for k, v in images.items() if k.endswith("steps")}, folder)
    return tables[0]


def _start(work: Path, stage: str, network: str, folder: Path) -> None:
    """Empty the folder for the weights of a finished stage, and copy its settings and log."""
    if not (work / stage / network).is_dir():
        msg = f"{str(work / stage)!r} must hold the finished weights; run pretraining first."
        raise FileNotFoundError(msg)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in ("pretrain_config.json", "pretrain_log.jsonl"):
        shutil.copy(work / name, folder / name)


def _index(components: Components, folder: Path) -> None:
    """Say what a pipeline needs besides weights: its parts, scheduler, cameras and image size."""
    scheduler = sdxl_scheduler(few_steps=True, prediction_type="v_prediction")
    pipeline = TextToMultiviewPipeline.from_components(
        components, scheduler=scheduler, rig=WORLD_RIG, image_size=IMAGE_SIZE, snr_shift=1.0
    )
    pipeline.scheduler.save_pretrained(folder / "scheduler")
    pipeline.save_config(str(folder))


def _sample_sheet(kinds: Mapping[str, Images], folder: Path) -> None:
    """Show some held-out prompts: real, and sampled in few steps."""
    _, prompts = split_prompts()
    chosen = [i * len(prompts) // _SHOWN for i in range(_SHOWN)]
    most = max(images.shape[1] for images in kinds.values())
    rows = [
        # Kinds with fewer views are filled up with white.
        pad(images[i].clamp(0, 1), (0,) * 7 + (most - images.shape[1],), value=1.0)
        for i in chosen
        for images in kinds.values()
    ]
    labels = [f"{prompts[i]}: {kind}" for i in chosen for kind in kinds]
    save_png(folder / "samples.png", contact_sheet(torch.stack(rows), scale=2, row_labels=labels))


def _loss_curve(folder: Path) -> None:
    """Draw each stage's loss over its steps."""
    lines = [json.loads(x) for x in (folder / "pretrain_log.jsonl").read_text("utf-8").splitlines()]
    stages = list(dict.fromkeys(line["stage"] for line in lines))
    figure = Figure(figsize=(2.6 * len(stages), 2.4), layout="constrained")
    for axes, stage in zip(figure.subplots(1, len(stages), squeeze=False)[0], stages, strict=True):
        rows = [line for line in lines if line["stage"] == stage]
        axes.semilogy([row["step"] for row in rows], [row["loss"] for row in rows])
        seconds = rows[-1]["seconds"] - rows[0]["seconds"]
        axes.set(title=f"{stage} ({seconds:.0f} s)", xlabel="step")
    figure.savefig(folder / "loss.png", dpi=90)
