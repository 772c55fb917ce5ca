"""Run folders as training writes them, made in milliseconds."""

import json
import math
from functools import cache

import torch
from safetensors.torch import save_file

from mvczigal_ref.config import load_config, to_dict
from mvczigal_ref.recipes import recipe
from mvczigal_ref.update.loss_scale import LossScale
from tests.iterations import FORWARD, ONE_VIEW, ZIGAL, Said, config_of, learn
from tests.unannotated import without_shape_checks

KEYS = (
    *("per_view_reward/zigzag", "per_view_reward/standard", "per_view_reward/gap"),
    *("joint_view_reward/zigzag", "joint_view_reward/standard", "joint_view_reward/gap"),
    *("multiplier", "threshold", "slack", "loss", "approx_kl", "clip_fraction", "grad_norm"),
    *("replay_deviation", "seconds/rollout", "seconds/reward", "seconds/advantage"),
    *("seconds/update", "peak_memory"),
)


def metrics(iterations, *, seed=0):
    """Plausible metrics, one mapping an iteration."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for iteration in range(iterations):
        noise = torch.randn(8, generator=generator).tolist()
        rise, fall = 1 - math.exp(-iteration / 40), math.exp(-iteration / 25)
        per_view, joint = 13 + 1.2 * rise, 8 + 1.6 * rise
        values = [
            *(per_view + 0.3 * noise[0], per_view + 0.3 * noise[1], 0.1 * noise[2]),
            *(joint + 0.4 * noise[3], joint + 0.4 * noise[4], 0.15 * noise[5]),
            *(0.6 * fall, 8 + 1.2 * rise, 0.4 * rise + 0.4 * noise[3]),
            *(1.2 + 0.1 * noise[6], 4e-5 * (2 + rise), 0.1 + 0.02 * noise[7], 0.03 + 0.03 * fall),
            *(0.0, 0.9, 0.2, 0.001, 1.9, 900e6),
        ]
        rows.append({"iteration": iteration, **dict(zip(KEYS, values, strict=True))})
    return rows


# A recipe of each kind of method.
KINDS = {"pairs": "tiny", "groups": "tiny_mv_grpo_vlm", "forward": "tiny_diffusion_nft"}


@cache
def learnt(kind):
    """Metrics of two real iterations of a kind of method, with a loss scale and with seconds."""
    how = {"iterations": 2, "loss_scale": LossScale(scale=4.0)}
    kl = {"objective.kl_weight": 0.1}
    with without_shape_checks():
        if kind == "pairs":
            _, rows, *_ = learn(config_of(ZIGAL), **how)
        elif kind == "groups":
            config = config_of(ONE_VIEW, kl)
            _, rows, *_ = learn(config, enhancer=Said("prompt 7"), **how)
        else:
            _, rows, *_ = learn(config_of(FORWARD), **how)
    rows = [{"iteration": iteration, **row} for iteration, row in enumerate(rows)]
    for row in rows:
        row |= {"seconds/rollout": 2.0, "seconds/decode": 1.0, "seconds/update": 3.0}
    return rows


def write_run(
    folder, *, rows=(), evaluated=(), prompts=None, images=None, overrides=(), name="tiny"
):
    """Write a folder of a run that has reached these rows and these evaluations.

    `evaluated` maps iterations to (per view, joint) tables of shape (noise, prompt).
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = load_config(recipe(name), overrides=overrides)
    (folder / "config.json").write_text(json.dumps(to_dict(config)), "utf-8")
    lines = [json.dumps(row) + "\n" for row in rows]
    (folder / "metrics.jsonl").write_text("".join(lines), "utf-8")
    (folder / "evaluations").mkdir(exist_ok=True)
    for iteration, (per_view, joint) in dict(evaluated).items():
        shown = torch.full((2, 6, 3, 8, 8), 0.5) if images is None else images[iteration]
        label = "after" if iteration else "before"
        path = folder / "evaluations" / f"{label}_{iteration:06d}.safetensors"
        tables = {"per_view": per_view, "joint": joint, "images": shown.contiguous()}
        save_file({name: value.clone() for name, value in tables.items()}, path)
    if prompts is not None:
        (folder / "evaluations" / "prompts.json").write_text(json.dumps(prompts), "utf-8")
    return folder
