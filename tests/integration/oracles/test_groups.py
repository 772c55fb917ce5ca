"""One iteration of Flow-GRPO, GRPO-Guard and MV-GRPO from their equations."""

import json
import math

import pytest
import torch

from tests.integration.oracles import real
from tests.integration.oracles.plain import (
    AdamW,
    assert_same_end,
    distance,
    log_density,
    noise,
    order,
)
from tests.plain_scorers import per_view_score

SHAPE = (1, 4, 8, 8)
STEPS, MEMBERS, NOISE_SCALE = 4, 3, 0.7
OPTIMISER = {"lr": 2e-2, "betas": (0.9, 0.999), "weight_decay": 1e-2}
# Some gradients of every method are longer than its limit.
LIMITS = {
    "flow_grpo": {"max_grad_norm": 2e-3, "eps": 1e-4},
    "grpo_guard": {"max_grad_norm": 0.01, "eps": 1e-4},
    "mv_grpo": {"max_grad_norm": 4e-3, "eps": 1e-4},
}
KL_WEIGHT, CAPTION_WEIGHT = 20.0, 0.5
CLIP = {"flow_grpo": 2e-4, "grpo_guard": 1e-4, "mv_grpo": 2e-3}


def captions_of(prompt):
    """Four captions: one of them twice, one the prompt itself."""
    return [f"{prompt} today", f"{prompt} today", prompt, f"a picture of {prompt}"]


def settings(folder, method):
    """Sections of the configuration in which a method differs from Flow-GRPO."""
    if method == "flow_grpo":
        return {
            "objective": {"clip_range": CLIP[method], "kl_weight": KL_WEIGHT},
            "run": {"iterations": 2},  # in the first, the reference is the policy that samples
        }
    if method == "grpo_guard":
        return {"objective": {"kind": "guard", "clip_range": CLIP[method]}}
    path = folder / "captions.jsonl"
    lines = [{"captions_file": 1}] + [
        {
            "prompt": prompt,
            "captions": [{"caption": c, "instruction": "none"} for c in captions_of(prompt)],
        }
        for prompt in real.PROMPTS
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return {
        "objective": {"clip_range": CLIP[method]},
        "condition": {
            "enhancer": "stored", "file": str(path), "num_captions": 4, "weight": CAPTION_WEIGHT,
        },
        "advantage": {"spread": "group", "ddof": 1},
        "rollout": {"shared_noise": True, "window_start": 1},
    }  # fmt: skip


METHODS = ["flow_grpo", "grpo_guard", "mv_grpo"]


@pytest.fixture(scope="module", params=METHODS)
def case(request, tmp_path_factory):
    """Train one iteration of two passes, each of two optimiser steps."""
    folder = tmp_path_factory.mktemp(request.param)
    base = {
        "model": {"network": "flow", "weights": "random", "lora_rank": 2, "lora_alpha": 4.0},
        "sampler": {"kind": "flow", "num_steps": STEPS, "guidance_scale": 1.0},
        "flow": {"kernel": "sde", "noise_scale": NOISE_SCALE},
        "rollout": {"kind": "group", "members": MEMBERS, "window": "fixed", "window_size": 2},
        "reward": {"joint": "per_view"},
        "advantage": {"mode": "per_view", "spread": "batch"},
        "objective": {"kind": "policy_gradient"},
        "optim": {
            **OPTIMISER,
            **LIMITS[request.param],
            "optimizer_steps_per_epoch": 2,
            "epochs_per_iteration": 2,
        },
    }
    changed = settings(folder, request.param)
    sections = {
        name: {**base.get(name, {}), **changed.get(name, {})} for name in {**base, **changed}
    }
    return request.param, real.trained(folder, real.flow_components(), **sections)


def levels():
    """FLUX's grid: even levels, shifted by what 16 tokens ask for."""
    shift = math.exp(0.5 + (16 - 256) / (4096 - 256) * (1.15 - 0.5))
    even = [1 - step / STEPS for step in range(STEPS)]
    return [shift * s / (1 + (shift - 1) * s) for s in even] + [0.0]


def kernel(velocity, x, high, low, scale):
    """Give mean and deviation of Flow-GRPO's step; without noise at a scale of 0."""
    length = high - low
    spread = scale * math.sqrt(high / (1 - (low if high == 1.0 else high)))
    score = -(x + (1 - high) * velocity) / high
    return x - length * velocity + 0.5 * spread**2 * length * score, spread * math.sqrt(length)


def path(member, taken, *, shared, first):
    """Name a member's noise by the branches taken: at the root, or where noise begins."""
    branches = [0] * (taken + 1)
    if not shared:
        branches[0] = member
    elif taken > first:
        branches[1 + first] = member
    return branches


@torch.no_grad()
def rollout(network, *, iteration, window, shared):
    """Sample four groups: latents are (prompt and member, view, ...), members adjacent."""
    grid = levels()

    def drawn(taken, *names):
        return torch.stack(
            [
                noise(
                    SHAPE, 0, iteration, item, *names, "member",
                    *path(member, taken, shared=shared, first=window[0]),
                )
                for item in range(4)
                for member in range(MEMBERS)
            ]
        )  # fmt: skip

    x, decisions = drawn(0, "initial"), []
    for step in range(STEPS):
        high, low = grid[step], grid[step + 1]
        velocity = network(x, 1000 * high, guidance=1.0, copies=MEMBERS)
        mean, std = kernel(velocity, x, high, low, NOISE_SCALE if step in window else 0.0)
        if step not in window:
            x = mean
            continue
        y = mean + std * drawn(step + 1, "group", step)
        decisions.append((step, x, y))
        x = y
    return decisions, x


def advantages(reward, method):
    """Compare rewards (prompt, member) within each prompt."""
    centred = reward - reward.mean(1, keepdim=True)
    if method == "mv_grpo":
        deviation = reward.std(1, keepdim=True, correction=1)
    else:
        deviation = reward.std(correction=0)
    return (centred / (deviation + 1e-4)).clamp(-5, 5)


def iterations(run, method, *, captions=True, kl_weight=KL_WEIGHT, guarded=True):
    """Do the whole run; return the trained parameters and the last iteration's gradient norms."""
    run.restart()
    optimiser = AdamW(list(run.parameters.values()), **OPTIMISER, **LIMITS[method])
    for index in range(len(run.metrics)):
        losses = iteration(
            run, method, index, captions=captions, kl_weight=kl_weight, guarded=guarded
        )
        norms = [optimiser.step(loss) for loss in losses]
    return {name: value.detach().clone() for name, value in run.parameters.items()}, norms


def iteration(run, method, index, *, captions, kl_weight, guarded):
    """Sample, judge and compare; return the losses of the optimiser steps."""
    prompts, grid = order(real.PROMPTS, seed=0, count=4, iteration=index), levels()
    many = method == "mv_grpo"
    window = (1, 2) if many else (0, 1)
    decisions, final = rollout(run.network(prompts), iteration=index, window=window, shared=many)
    images = run.images(final)
    conditions = [prompts]
    if many and captions:
        conditions += [list(column) for column in zip(*map(captions_of, prompts), strict=True)]
    weights = [1.0, *[CAPTION_WEIGHT] * (len(conditions) - 1)]
    weights = [weight * len(weights) / sum(weights) for weight in weights]

    def transition(texts, step, x):
        velocity = run.network(texts)(x, 1000 * grid[step], guidance=1.0, copies=MEMBERS)
        return kernel(velocity, x, grid[step], grid[step + 1], NOISE_SCALE)

    tables = []
    with torch.no_grad():
        for texts in conditions:
            reward = per_view_score(images, [text for text in texts for _ in range(MEMBERS)])
            before = []
            for step, x, y in decisions:
                mean, std = transition(texts, step, x)
                with run.without_lora():
                    far, _ = transition(texts, step, x)
                before.append((mean, far, log_density(y, mean, std)))
            tables.append((advantages(reward.reshape(4, MEMBERS), method).flatten(), before))

    def loss(first):
        rows, terms = slice(first * MEMBERS, (first + 2) * MEMBERS), []
        for texts, weight, (advantage, before) in zip(conditions, weights, tables, strict=True):
            for (step, x, y), (mean_old, far, score_old) in zip(decisions, before, strict=True):
                mean, std = transition(texts[first : first + 2], step, x[rows])
                change = (log_density(y[rows], mean, std) - score_old[rows])[:, 0]
                length, clip = 1.0, CLIP[method]
                if method == "grpo_guard" and guarded:
                    moved = (mean - mean_old[rows]).square().mean((-3, -2, -1))[:, 0]
                    change = (change + moved / (2 * std**2)) * std
                    length = grid[step] - grid[step + 1]
                ratio, value = change.exp(), advantage[rows]
                near = ratio.clamp(1 - clip, 1 + clip)
                term = weight * torch.maximum(-value * ratio, -value * near) / length
                if method == "flow_grpo":
                    gone = (mean - far[rows]).square().mean((-3, -2, -1))[:, 0]
                    term = term + kl_weight * gone / (2 * std**2)
                terms.append(term)
        return torch.stack(terms).mean()

    return [lambda first=first: loss(first) for first in (0, 2, 0, 2)]


def test_the_iteration_ends_at_the_same_parameters(case):
    """Rollout, rewards, advantages, gradient and all four AdamW steps, under every condition."""
    method, run = case
    end, norms = iterations(run, method)
    row = run.metrics[-1]

    # fp32 rounds what moves a log-density, up to 2e-3, to 1e-7 of the density itself.
    assert_same_end(run, end, 3e-4)
    assert row["grad_norm"] == pytest.approx(sum(norms) / 4, rel=1e-3)
    assert 0.0 < row["clip_fraction"] < 1.0
    assert max(norms) > LIMITS[method]["max_grad_norm"]


def test_another_algorithm_ends_elsewhere(case):
    """A divergence without weight, a ratio without guard and captions left out are told apart."""
    method, run = case
    changed = {"flow_grpo": "kl_weight", "grpo_guard": "guarded", "mv_grpo": "captions"}[method]

    assert distance(run, iterations(run, method, **{changed: False})[0]) > 3e-2
