"""Arms of made-up runs."""

import torch

from mvczigal_ref.reproduce.arms import ArmRuns


def made_run(seed, *, per_view=1.0, joint=0.5, slack=0.2, gaps=(0.4, 0.1), counts=None, rows=8):
    """One run whose prompts and seeds differ a little."""
    spread = torch.linspace(-0.05, 0.05, 6)[None]
    luck = 0.02 * (seed - 2)
    before = {name: torch.full((2, 6), 10.0) for name in ("per_view", "joint")}
    gains = {"per_view": per_view, "joint": joint}
    half = rows // 2
    metrics = [
        {
            "iteration": i, "slack": slack if i >= half else -9.0, "multiplier": 0.1 * i,
            "threshold": 9.0, "per_view_reward/gap": gaps[i >= half] + luck,
            "joint_view_reward/gap": 0.0, "per_view_reward/zigzag": 12.0 + seed,
            "per_view_reward/standard": 10.0 + seed, "joint_view_reward/zigzag": 5.0,
            "joint_view_reward/standard": 5.0,
        }
        for i in range(rows)
    ]  # fmt: skip
    return {
        "before": before,
        "after": {name: before[name] + gains[name] + luck + spread for name in before},
        "metrics": metrics, "calls": 100 + seed, "seconds": 1.0,
        "captions": [{"drift_counts": counts}] if counts else [],
    }  # fmt: skip


def made_arm(seeds=range(5), **values):
    """Runs of an arm."""
    return ArmRuns(seeds=tuple(seeds), runs=tuple(made_run(seed, **values) for seed in seeds))
