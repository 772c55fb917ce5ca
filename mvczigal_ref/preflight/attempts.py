"""Attempts on what training relies on, each with the likely cause of its failure."""

import math
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mvczigal_ref.config import to_dict
from mvczigal_ref.files import atomic_write, to_json
from mvczigal_ref.preflight.snapshots import (
    fingerprints,
    gradients,
    in_fp32,
    moments,
    put_back,
)
from mvczigal_ref.preflight.trial import Place, Trial
from mvczigal_ref.system.networks import DTYPES
from mvczigal_ref.training.run_folder import find_checkpoint
from mvczigal_ref.training.state import TrainingState, resume
from mvczigal_ref.update.parameters import parameter_copies

__all__ = ["ATTEMPTS", "CheckResult", "Finding"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One law that was tried."""

    name: str
    """The law that must hold."""
    passed: bool
    """Whether it holds; True where it was not tried."""
    reason: str
    """Observation; where the law does not hold, the likely cause, and where it was not tried, the
    reason why it makes no sense for this run."""
    tried: bool = True
    """Whether it makes sense for this run, and was tried."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckResult:
    """Findings of all attempts."""

    findings: tuple[Finding, ...]
    """Findings in the order in which they were tried."""
    seconds: float
    """Time it took, loading left out [s]."""

    @property
    def passed(self) -> bool:
        """Whether every law holds."""
        return all(finding.passed for finding in self.findings)


def _first_ratio(trial: Trial) -> Iterable[Finding]:
    """Replay every stored action, in every storage dtype."""
    for storage in DTYPES:
        name = f"first ratio is 1, {storage} storage"
        if trial.no_density is not None:
            yield Finding(
                name=name, passed=True, tried=False, reason=f"not tried: {trial.no_density}"
            )
            continue
        places, wrong = trial.places(trial.samples(storage)), []
        for place in places:
            deviation = float((place.replay(True) - _density(place)).abs().max())
            if deviation != 0.0:  # NaN too
                wrong.append((place, f"{place.name} by {deviation:.3g}"))
        reason = f"exactly 1 in all {len(places)} replays"
        if wrong:
            place, description = wrong[0]
            reason = (
                f"its logarithm is off at {len(wrong)} places, at {description}: "
                f"{_why_unlike(trial, place)}"
            )
        yield Finding(name=name, passed=not wrong, reason=reason)


def _density(place: Place) -> Tensor:
    if place.stored is None:
        raise ValueError(f"`stored` must hold the densities of {place.name}; got None.")
    return place.stored


def _why_unlike(trial: Trial, place: Place) -> str:
    """Find the cause of a replay that differs from what was sampled."""
    if not bool(place.finite.isfinite().all()):
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
    if not torch.equal(place.replay(True), place.replay(True)):
        return _RANDOM
    if torch.equal(place.replay(False), _density(place)):
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
    first, second = trial.samples(storage), trial.sample(storage)
    last = trial.places(first)[-1]
    pairs = zip(trial.drawn(first), trial.drawn(second), strict=True)
    laws = {
        "sampling": all(torch.equal(*both) for both in pairs),
        "replay": torch.equal(last.replay(True), last.replay(True)),
    }
    for name, same in laws.items():
        reason = "the same bits twice" if same else f"twice is not the same: {_RANDOM}"
        yield Finding(name=f"{name} repeats", passed=same, reason=reason)


def _zero_advantage(trial: Trial) -> Iterable[Finding]:
    """Learn from an advantage of 0, which asks for no change."""
    samples = trial.samples(trial.config.model.storage_dtype)
    trial.learn(samples, 0, advantage=0.0)
    nothing = {name: g.clone() for name, g in gradients(trial.system).items()}
    moved = [name for name, g in nothing.items() if bool(g.count_nonzero())]
    reason = "the gradient is exactly 0"
    if moved and trial.zero_tolerance:
        trial.learn(samples, 0, advantage=1.0)
        share = _norm(nothing.values()) / (_norm(gradients(trial.system).values()) or 1.0)
        moved = moved if not share < trial.zero_tolerance else []
        reason = f"the gradient is {share:.2g} of that of an advantage of 1: its rounding"
    if moved:
        reason = (
            f"{moved[0]} and {len(moved) - 1} others get a gradient: the first ratio is not 1, or "
            "something is added to the loss."
        )
    yield Finding(name="no advantage, no gradient", passed=not moved, reason=reason)


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


def _survival(trial: Trial) -> Iterable[Finding]:
    """Compare the gradient of the run's own loss with that of the same network in fp32."""
    name = "gradients survive the dtype"
    samples = trial.samples(trial.config.model.storage_dtype)
    scale = trial.learn(samples, 0, advantage=1.0)
    half = {name: g.double() for name, g in gradients(trial.system).items()}
    exact = half
    try:
        with in_fp32(trial.system.policy) as widened:
            if widened:
                trial.learn(trial.rescored(samples, 0), 0, advantage=1.0)
                exact = {name: g.double() for name, g in gradients(trial.system).items()}
    except RuntimeError as error:
        if "out of memory" not in str(error) and not isinstance(error, torch.OutOfMemoryError):
            raise
        reason = "not tried: no room for an fp32 copy of the network"
        yield Finding(name=name, passed=True, tried=False, reason=reason)
        return
    reached = sum(int(g.count_nonzero()) for g in exact.values())
    lost = sum(int(((g != 0) & (half[name] == 0)).sum()) for name, g in exact.items())
    sizes = [_norm(part.values()) for part in (half, exact)]
    rms = sizes[0] / math.sqrt(sum(p.numel() for p in trial.system.trained().values()))
    dot = sum(float((g * half[name]).sum()) for name, g in exact.items())
    zeros = lost / reached if reached else 1.0
    cosine = dot / math.prod(sizes) if all(sizes) else 0.0
    reason = (
        f"{zeros:.1%} of its numbers are exactly 0 that are not in fp32; its cosine to fp32 is "
        f"{cosine:.4f}; the loss scale {scale:g}; rms {rms:.2g} against optim.eps "
        f"{trial.config.optim.eps:g}"
    )
    passed = cosine > _COSINE and zeros < _ZEROS
    if not passed:
        reason += (
            f". It rounds away in {trial.config.model.dtype}: set `optim.loss_scale` higher, or "
            "`model.dtype` to bf16 or fp32."
        )
    yield Finding(name=name, passed=passed, reason=reason)


_COSINE, _ZEROS = 0.9, 0.5
"""Least cosine of a gradient to that of fp32, and largest share of it that is lost [1]."""


def _learning(trial: Trial) -> Iterable[Finding]:
    """Take one optimiser step on an advantage of 1; what does not train must not notice."""
    system, samples = trial.system, trial.samples(trial.config.model.storage_dtype)
    prints, start = fingerprints(trial), parameter_copies(system.trained())
    rise, factor = _rise(trial, samples, factor=1.0), 1.0
    while not rise > 0.0 and factor > 1e-3:
        put_back(system.trained(), start)
        factor /= 10
        rise = _rise(trial, samples, factor=factor)
    reached = any(bool(g.count_nonzero()) for g in gradients(system).values())
    reason = f"one step {trial.goal}, by {rise:.3g}"
    if not reached:
        reason = (
            "no gradient reaches what trains: the network's output is detached from it, or all of "
            "it rounds to 0."
        )
    elif not rise > 0.0:
        reason = (
            f"even a thousandth of a step changes it by {rise:.3g}: an advantage has the wrong "
            "sign, or the gradient is not that of this network."
        )
    elif factor < 1.0:
        reason = (
            f"only {factor:g} of a step raises it: `optim.lr` = {trial.config.optim.lr:g} is too "
            f"large. Try {trial.config.optim.lr * factor:g}."
        )
    passed = reached and rise > 0.0 and factor == 1.0
    yield Finding(name=f"an advantage of 1 {trial.goal}", passed=passed, reason=reason)
    yield _base(trial, prints)


def _rise(trial: Trial, samples: Any, *, factor: float) -> float:  # noqa: ANN401 - of each kind
    """Take one step of the run's optimiser, and measure its progress."""
    before, state = trial.progress(samples), trial.state()
    for group in state.optimizer.param_groups:
        group["lr"] *= factor
    trial.learn(samples, 0, advantage=1.0)
    state.optimizer.step()
    return trial.progress(samples) - before


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
    reason = f"{len(before)} frozen tensors are what they were"
    if changed:
        reason = (
            f"{changed[0]} and {len(changed) - 1} others changed: they are in the optimiser, or "
            "the network writes to them."
        )
    elif loose:
        reason = f"{loose[0]} and {len(loose) - 1} others want a gradient and are not trained."
    return Finding(name="frozen weights stay", passed=not (changed or loose), reason=reason)


def _reload(trial: Trial) -> Iterable[Finding]:
    """Save after one step, spoil, and read back."""
    name, system, state = "a saved state comes back", trial.system, trial.state()
    trial.learn(trial.samples(trial.config.model.storage_dtype), 0, advantage=1.0)
    state.optimizer.step()
    state.finished = 1
    saved = _tensors(state)
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        state.save(folder)
        atomic_write(folder / "config.json", to_json(to_dict(state.config)))
        with torch.no_grad():
            for parameter in system.trained().values():
                parameter.zero_()
        checkpoint = find_checkpoint(folder, state.config)
        if checkpoint is None:
            reason = "nothing was written: look at the free space of the temporary folder."
            return [Finding(name=name, passed=False, reason=reason)]
        resumed = resume(system, state.config, trial.prompts, checkpoint)
    read = _tensors(resumed)
    unlike = [n for n in saved if n not in read or not torch.equal(saved[n], read[n])]
    same = not unlike and (resumed.constraint, resumed.finished) == (
        state.constraint, state.finished,
    )  # fmt: skip
    reason = f"{len(saved)} tensors, to the bit"
    if not same:
        place = unlike[0] if unlike else "the constraint"
        reason = f"{place} is not what was saved: it was rounded, left out, or another's."
    return [Finding(name=name, passed=same, reason=reason)]


def _tensors(state: TrainingState) -> dict[str, Tensor]:
    """Copy everything that a checkpoint holds."""
    swapped = {"policy that samples": state.old, "average": state.average}
    return {
        **parameter_copies(state.system.trained()),
        **moments(state.optimizer),
        **{
            f"{kind} {name}": value.detach().clone()
            for kind, values in swapped.items()
            for name, value in (values or {}).items()
        },
    }


ATTEMPTS: Sequence[tuple[Sequence[str], Callable[[Trial], Iterable[Finding]]]] = (
    (("first ratio is 1",), _first_ratio),
    (("sampling repeats", "replay repeats"), _repeats),
    (("no advantage, no gradient",), _zero_advantage),
    (("gradients survive the dtype",), _survival),
    (("an advantage of 1 {goal}", "frozen weights stay"), _learning),
    (("a saved state comes back",), _reload),
)
"""Attempts in order, each with the names of its findings; ``{goal}`` is that of the trial."""
