"""What is tried, and why it would fail."""

import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from mvczigal_ref.config import to_dict
from mvczigal_ref.files import atomic_write, to_json
from mvczigal_ref.preflight.trial import (
    Trial,
    copies,
    fingerprints,
    gradients,
    in_fp32,
    moments,
    put_back,
)
from mvczigal_ref.records import PairedRollout, Trajectory
from mvczigal_ref.system.networks import DTYPES
from mvczigal_ref.training.run_folder import find_checkpoint
from mvczigal_ref.training.state import resume

__all__ = ["ATTEMPTS", "Finding", "Verdict"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was tried."""

    name: str
    """What must hold."""
    passed: bool
    """Whether it does."""
    told: str
    """What was seen; where it does not hold, the likely cause."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Everything that was tried."""

    findings: tuple[Finding, ...]
    """In the order in which it was tried."""
    seconds: float
    """Time it took, loading left out [s]."""

    @property
    def passed(self) -> bool:
        """Whether all of it holds."""
        return all(finding.passed for finding in self.findings)


def _first_ratio(trial: Trial) -> Iterable[Finding]:
    """Replay every step of both arms, in every storage dtype."""
    for storage in DTYPES:
        pair, wrong = trial.sample(storage), []
        for name, arm in (("zigzag", pair.zigzag), ("standard", pair.standard)):
            for step, stored in enumerate(arm.log_prob):
                deviation = float((trial.replay(arm, step)[0] - stored).abs().max())
                if deviation != 0.0:  # NaN too
                    wrong.append((arm, step, f"step {step} of the {name} arm by {deviation:.3g}"))
        told = f"exactly 1 at all {len(pair.standard.log_prob)} steps of both arms"
        if wrong:
            arm, step, what = wrong[0]
            told = (
                f"its logarithm is off at {len(wrong)} places, at {what}: "
                f"{_why_unlike(trial, arm, step)}"
            )
        yield Finding(name=f"first ratio is 1, {storage} storage", passed=not wrong, told=told)


def _why_unlike(trial: Trial, arm: Trajectory, step: int) -> str:
    """Find out what makes a replay differ from what was sampled."""
    if not bool(arm.log_prob.isfinite().all()):
        return (
            f"the network's output is not finite in {trial.config.model.dtype}. Set "
            "`model.dtype` to bf16, or to fp32."
        )
    training = [
        name for name, module in trial.system.policy.named_modules()
        if module.training and isinstance(module, nn.Dropout) and module.p > 0.0
    ]  # fmt: skip
    if training:
        return f"dropout is on, in {training[0]} and {len(training) - 1} others. Call `.eval()`."
    again, first = trial.replay(arm, step), trial.replay(arm, step)
    if not torch.equal(again, first):
        return _RANDOM
    if torch.equal(trial.replay(arm, step, gradient=False)[0], arm.log_prob[step]):
        return (
            "it is right without gradient, so that computing with gradient is what differs: "
            "autocast, checkpointing, or a wrapper around the network."
        )
    return (
        "sampling and replay tell the network different things: guidance or camera scale, "
        "conditioning, reduction, or rounding of the stored latents."
    )


_RANDOM = (
    "the network draws random numbers, or a kernel is not deterministic. Look for dropout, and "
    "for attention or convolution backends that add in no fixed order."
)


def _repeats(trial: Trial) -> Iterable[Finding]:
    """Sample and replay twice."""
    storage = trial.config.model.storage_dtype
    first, second = trial.sample(storage), trial.sample(storage)
    last = len(first.standard.log_prob) - 1
    scores = [trial.replay(first.standard, last) for _ in range(2)]
    sampled = all(
        torch.equal(getattr(first, arm).action, getattr(second, arm).action)
        for arm in ("zigzag", "standard")
    )
    for name, same in (("sampling", sampled), ("replay", torch.equal(*scores))):
        told = "the same bits twice" if same else f"twice is not the same: {_RANDOM}"
        yield Finding(name=f"{name} repeats", passed=same, told=told)


def _zero_advantage(trial: Trial) -> Iterable[Finding]:
    """A gap of 0 asks for no change."""
    pair = trial.sample(trial.config.model.storage_dtype)
    trial.learn(pair, 0, advantage=0.0)
    moved = [n for n, g in gradients(trial.system).items() if bool(g.count_nonzero())]
    told = "the gradient is exactly 0"
    if moved:
        told = (
            f"{moved[0]} and {len(moved) - 1} others get a gradient: the first ratio is not 1, or "
            "something is added to the loss."
        )
    yield Finding(name="no advantage, no gradient", passed=not moved, told=told)


def _survival(trial: Trial) -> Iterable[Finding]:
    """Compare the gradient of the run's own loss with that of the same network in fp32."""
    pair = trial.sample(trial.config.model.storage_dtype)
    scale = trial.learn(pair, 0, advantage=1.0)
    half = {name: g.double() for name, g in gradients(trial.system).items()}
    exact = half
    with in_fp32(trial.system.policy) as widened:
        if widened:
            trial.learn(trial.rescored(pair, 0), 0, advantage=1.0)
            exact = {name: g.double() for name, g in gradients(trial.system).items()}
    reached = sum(int(g.count_nonzero()) for g in exact.values())
    lost = sum(int(((g != 0) & (half[name] == 0)).sum()) for name, g in exact.items())
    sizes = [sum(float(g.square().sum()) for g in part.values()) for part in (half, exact)]
    dot = sum(float((g * half[name]).sum()) for name, g in exact.items())
    zeros = lost / reached if reached else 1.0
    cosine = dot / math.sqrt(math.prod(sizes)) if all(sizes) else 0.0
    told = (
        f"{zeros:.1%} of its numbers are exactly 0 that are not in fp32; its cosine to fp32 is "
        f"{cosine:.4f}; the loss scale {scale:g}"
    )
    passed = cosine > _COSINE and zeros < _ZEROS
    if not passed:
        told += (
            f". It rounds away in {trial.config.model.dtype}: set `optim.loss_scale` higher, or "
            "`model.dtype` to bf16 or fp32."
        )
    yield Finding(name="gradients survive the dtype", passed=passed, told=told)


_COSINE, _ZEROS = 0.9, 0.5
"""Least cosine of a gradient to that of fp32, and largest share of it that is lost [1]."""


def _learning(trial: Trial) -> Iterable[Finding]:
    """One optimiser step on an advantage of 1; what does not train must not notice."""
    system, pair = trial.system, trial.sample(trial.config.model.storage_dtype)
    prints, start = fingerprints(trial), copies(system.trained())
    rise, factor = _rise(trial, pair, factor=1.0), 1.0
    while not rise > 0.0 and factor > 1e-3:
        put_back(system.trained(), start)
        factor /= 10
        rise = _rise(trial, pair, factor=factor)
    reached = any(bool(g.count_nonzero()) for g in gradients(system).values())
    told = f"one step raises the log-density by {rise:.3g}"
    if not reached:
        told = (
            "no gradient reaches what trains: the network's output is detached from it, or all of "
            "it rounds to 0."
        )
    elif not rise > 0.0:
        told = (
            f"even a thousandth of a step changes it by {rise:.3g}: an advantage has the wrong "
            "sign, or the gradient is not that of this network."
        )
    elif factor < 1.0:
        told = (
            f"only {factor:g} of a step raises it: `optim.lr` = {trial.config.optim.lr:g} is too "
            f"large. Try {trial.config.optim.lr * factor:g}."
        )
    passed = reached and rise > 0.0 and factor == 1.0
    yield Finding(name="an advantage of 1 raises the log-density", passed=passed, told=told)
    yield _base(trial, prints)


def _rise(trial: Trial, pair: PairedRollout, *, factor: float) -> float:
    """Take one step of the run's optimiser, and see how the arms' difference moves."""

    def difference() -> float:
        arms = (trial.replay(arm, 0, gradient=False) for arm in (pair.zigzag, pair.standard))
        first, second = arms
        return float((first - second).double().mean())

    before, state = difference(), trial.state()
    for group in state.optimizer.param_groups:
        group["lr"] *= factor
    trial.learn(pair, 0, advantage=1.0)
    state.optimizer.step()
    return difference() - before


def _base(trial: Trial, before: Mapping[str, int]) -> Finding:
    after = fingerprints(trial)
    changed = [name for name in before if before[name] != after[name]]
    trained = {id(p) for p in trial.system.trained().values()}
    loose = [
        f"{part}: {name}"
        for part, module in trial.modules()
        for name, p in module.named_parameters()
        if p.requires_grad and id(p) not in trained
    ]
    told = f"{len(before)} frozen tensors are what they were"
    if changed:
        told = (
            f"{changed[0]} and {len(changed) - 1} others changed: they are in the optimiser, or "
            "the network writes to them."
        )
    elif loose:
        told = f"{loose[0]} and {len(loose) - 1} others want a gradient and are not trained."
    return Finding(name="frozen weights stay", passed=not (changed or loose), told=told)


def _reload(trial: Trial) -> Iterable[Finding]:
    """Save after one step, spoil, and read back."""
    system, state = trial.system, trial.state()
    trial.learn(trial.sample(trial.config.model.storage_dtype), 0, advantage=1.0)
    state.optimizer.step()
    state.finished = 1
    wanted = {**copies(system.trained()), **moments(state.optimizer)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        state.save(folder)
        atomic_write(folder / "config.json", to_json(to_dict(state.config)))
        with torch.no_grad():
            for parameter in system.trained().values():
                parameter.zero_()
        checkpoint = find_checkpoint(folder, state.config)
        if checkpoint is None:
            told = "nothing was written: look at the free space of the temporary folder."
            return [Finding(name="a saved state comes back", passed=False, told=told)]
        found = resume(system, state.config, trial.prompts, checkpoint)
    read = {**copies(system.trained()), **moments(found.optimizer)}
    unlike = [n for n in wanted if n not in read or not torch.equal(wanted[n], read[n])]
    same = not unlike and (found.constraint, found.finished) == (state.constraint, state.finished)
    told = f"{len(wanted)} tensors, to the bit"
    if not same:
        what = unlike[0] if unlike else "the constraint"
        told = f"{what} is not what was saved: it was rounded, left out, or another's."
    return [Finding(name="a saved state comes back", passed=same, told=told)]


ATTEMPTS: Sequence[tuple[Sequence[str], Callable[[Trial], Iterable[Finding]]]] = (
    (("first ratio is 1",), _first_ratio),
    (("sampling repeats", "replay repeats"), _repeats),
    (("no advantage, no gradient",), _zero_advantage),
    (("gradients survive the dtype",), _survival),
    (("an advantage of 1 raises the log-density", "frozen weights stay"), _learning),
    (("a saved state comes back",), _reload),
)
"""What is tried, in order, each with the names of its findings."""
