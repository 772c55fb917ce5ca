"""Claims of the papers, as they were written down before their runs: data alone.

Three sets of arms, each at equal network calls; fourteen claims, each with the sentence that is
put to the test and the requirements by which it is decided. :mod:`.verdicts` evaluates them.
"""

from dataclasses import dataclass
from typing import Final, Literal

from mvczigal_ref.reproduce.methods import ArmSet, MethodRow

__all__ = [
    "ARM_SETS",
    "CLAIMS",
    "LEAST_SEEDS",
    "PILOT_SEEDS",
    "SEEDS",
    "Claim",
    "Measure",
    "Requirement",
]

SEEDS: Final = (10, 11, 12, 13, 14)
"""Seeds of the runs that are reported; the recipes' settings were chosen with seeds 0 to 2."""

PILOT_SEEDS: Final = 100
"""First of the seeds with which settings were chosen; runs of these are never reported."""

LEAST_SEEDS: Final = 5
"""Seeds of every arm that a claim needs; with fewer it stays open."""

_ITERATIONS = 60  # of the first arm; the others get as many as its network calls allow
_FLOW_ITERATIONS = 40
_LONG_ITERATIONS = 120

_ALL_AT_ONCE = "run.objects_per_slice=32"  # takes less time, and rounds otherwise
_WEAK_CAMERAS = (
    "sampler.camera_scale=0.3",
    "sampler.guidance_scale=2",
    f"run.iterations={_ITERATIONS}",
    f"optim.decay_iterations={_ITERATIONS}",
    "optim.lr=6e-3",
    "run.evaluation_noises=4",
    "run.checkpoint_every=20",
    _ALL_AT_ONCE,
)
_MULTIPLIER = "constraint.multiplier_init=0.5"  # of all arms that have one
_FULL_CAMERAS = (
    "sampler.guidance_scale=2",
    f"run.iterations={_LONG_ITERATIONS}",
    f"optim.decay_iterations={_LONG_ITERATIONS}",
    "run.evaluation_noises=4",
    _ALL_AT_ONCE,
)
_FLOW = (
    f"run.iterations={_FLOW_ITERATIONS}",
    f"optim.decay_iterations={_FLOW_ITERATIONS}",
)
_LOOSE, _TIGHT = 7.5, 11.5  # thresholds [dB], 2 below and above the first mean

ARM_SETS: Final = {
    "weak_cameras": ArmSet(
        scores=("per_view", "joint"),
        settings=_WEAK_CAMERAS,
        methods=(
            MethodRow("MVC-ZigAL", "tiny", (), (_MULTIPLIER,)),
            MethodRow("per view alone", "tiny_per_view"),
            MethodRow(
                "fixed threshold, first mean", "tiny_fixed_threshold", (), (_MULTIPLIER,)
            ),
            MethodRow(
                "fixed threshold, too loose", "tiny_fixed_threshold", (),
                (f"constraint.threshold_init={_LOOSE}", _MULTIPLIER), "loose_threshold",
            ),
            MethodRow(
                "fixed threshold, too tight", "tiny_fixed_threshold", (),
                (f"constraint.threshold_init={_TIGHT}", _MULTIPLIER), "tight_threshold",
            ),
            MethodRow("fixed step size 0.1", "tiny_fixed_step_size", (), (_MULTIPLIER,)),
            MethodRow(
                "fixed step size 0.01", "tiny_fixed_step_size", (),
                (
                    "constraint.step_size_violated=0.01", "constraint.step_size_satisfied=0.01",
                    _MULTIPLIER,
                ),
                "small_step_size",
            ),
            MethodRow(
                "WS-ZigAL, joint weight 0.25", "tiny_ws_zigal", (),
                ("advantage.joint_weight=0.25",), "weighted_sum_25",
            ),
            MethodRow("WS-ZigAL, joint weight 0.5", "tiny_ws_zigal"),
            MethodRow(
                "WS-ZigAL, joint weight 0.75", "tiny_ws_zigal", (),
                ("advantage.joint_weight=0.75",), "weighted_sum_75",
            ),
            MethodRow("MVC-ZigPG", "tiny_mvc_zigpg", (), (_MULTIPLIER,)),
            MethodRow(
                "standard pairs (MVC-RDL)", "tiny", (), ("objective.pairing=standard", _MULTIPLIER),
                "standard_pairs",
            ),
            MethodRow("full-step zigzag", "tiny_full_zigzag", (), (_MULTIPLIER,)),
            MethodRow(
                "last action trained", "tiny", (),
                ("objective.train_last_action=true", _MULTIPLIER), "last_action",
            ),
        ),
    ),
    "full_cameras": ArmSet(
        scores=("per_view", "joint"),
        settings=_FULL_CAMERAS,
        methods=(MethodRow("MVC-ZigAL from the best base", "tiny", (), (), "best_base"),),
    ),
    "flow": ArmSet(
        scores=("per_view",),
        settings=_FLOW,
        methods=(
            MethodRow("Flow-GRPO-Fast", "tiny_flow_grpo_fast"),
            MethodRow("MV-GRPO (online)", "tiny_mv_grpo_vlm"),
            MethodRow("MV-GRPO (offline)", "tiny_mv_grpo_llm"),
            MethodRow("DiffusionNFT", "tiny_diffusion_nft"),
            MethodRow("Flow-GRPO", "tiny_flow_grpo"),
        ),
    ),
}  # fmt: skip
"""Arms of the claims by the setting that they share; names of arms differ over all sets."""

Measure = Literal[
    "gain", "difference", "slack", "front", "errors", "zigzag", "zigzag_change", "small_drift"
]
"""Quantity that a requirement bounds.

``gain``: held-out score after training minus before [dB]. ``difference``: gain of the first arm
minus ``factor`` times that of the second, paired by seed and prompt [dB]. ``errors``: gain in
standard errors over seeds and prompts [1]. ``front``: how far the first arm lies beyond every
mixture of the others, the larger of its two leads over the mixture that leads least [dB].
``slack``: joint training reward minus the threshold, mean of the last quarter of iterations [dB].
``zigzag``: zigzag reward minus that of its standard partner, mean of the first quarter [dB];
``zigzag_change``: of the last quarter minus that of the first. ``small_drift``: share of captions
whose probability drift is below the clip range [1].
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Requirement:
    """Quantity that must lie on one side of a bound, with its whole 95 % interval."""

    measure: Measure
    """Quantity."""

    arms: tuple[str, ...]
    """Arms that it is computed from."""

    score: Literal["per_view", "joint", "sum"] = "per_view"
    """Score of the gains; ``sum`` is per view plus joint. Not read by ``front`` and ``slack``."""

    side: Literal["above", "below"] = "above"
    """Side of the bound."""

    bound: float = 0.0
    """Bound, in the measure's unit."""

    factor: float = 1.0
    """Factor on the second arm's gain in a difference [1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """Sentence of a paper, and when it holds here."""

    letter: str
    """Name of the claim on the command line."""

    sentence: str
    """Sentence that is put to the test."""

    rule: str
    """Requirements in words."""

    requirements: tuple[Requirement, ...]
    """All must be met: it holds. One is missed with its whole interval: it does not. Otherwise,
    or with fewer seeds than :data:`LEAST_SEEDS`, it is open."""

    @property
    def arms(self) -> tuple[str, ...]:
        """Arms whose runs the claim needs, each once."""
        return tuple(dict.fromkeys(arm for one in self.requirements for arm in one.arms))


def _beats(first: str, *others: str, score: Literal["per_view", "sum"] = "sum") -> tuple[
    Requirement, ...
]:  # fmt: skip
    return tuple(
        Requirement(measure="difference", arms=(first, other), score=score) for other in others
    )


CLAIMS: Final = (
    Claim(
        letter="a",
        sentence="The per-view reward alone raises its own score and breaks consistency.",
        rule="the per-view gain of per view alone is above 0, and its joint gain is below 0",
        requirements=(
            Requirement(measure="gain", arms=("tiny_per_view",)),
            Requirement(measure="gain", arms=("tiny_per_view",), score="joint", side="below"),
        ),
    ),
    Claim(
        letter="b",
        sentence="The constraint keeps the joint score at or above its threshold while the "
        "per-view score rises at least 80 % as far; the joint score ends higher.",
        rule="joint training reward minus threshold, last quarter of iterations, is above 0; the "
        "per-view gain minus 0.8 times that of per view alone is above 0; the joint gain minus "
        "that of per view alone is above 0",
        requirements=(
            Requirement(measure="slack", arms=("tiny",)),
            Requirement(measure="difference", arms=("tiny", "tiny_per_view"), factor=0.8),
            Requirement(measure="difference", arms=("tiny", "tiny_per_view"), score="joint"),
        ),
    ),
    Claim(
        letter="c",
        sentence="A threshold that adapts beats fixed ones: at the first mean, too loose, and too "
        "tight.",
        rule="the sum of both gains, minus that of each fixed threshold, is above 0",
        requirements=_beats("tiny", "tiny_fixed_threshold", "loose_threshold", "tight_threshold"),
    ),
    Claim(
        letter="d",
        sentence="Step sizes of 0.1 when violated and 0.01 when satisfied beat 0.1 and 0.01 for "
        "both.",
        rule="the sum of both gains, minus that of each fixed step size, is above 0",
        requirements=_beats("tiny", "tiny_fixed_step_size", "small_step_size"),
    ),
    Claim(
        letter="e",
        sentence="Weighted sums trace a front, and the constrained run lies on it or beyond.",
        rule="from joint weight 0.25 to 0.75 the joint gain rises and the per-view gain falls; no "
        "mixture of the weighted sums beats the constrained run by 0.1 dB in both gains",
        requirements=(
            Requirement(
                measure="difference", arms=("weighted_sum_75", "weighted_sum_25"), score="joint"
            ),
            Requirement(
                measure="difference", arms=("weighted_sum_75", "weighted_sum_25"), side="below"
            ),
            Requirement(
                measure="front", bound=-0.1,
                arms=("tiny", "weighted_sum_25", "tiny_ws_zigal", "weighted_sum_75"),
            ),
        ),
    ),
    Claim(
        letter="f",
        sentence="The advantage of a pair beats a policy gradient.",
        rule="the sum of both gains, minus that of MVC-ZigPG, is above 0",
        requirements=_beats("tiny", "tiny_mvc_zigpg"),
    ),
    Claim(
        letter="g",
        sentence="Zigzag sampling beats standard sampling at test time, its lead shrinks in "
        "training, and training with it gains more than with two standard arms.",
        rule="zigzag minus standard in the sum of both rewards is above 0 in the first quarter of "
        "iterations and falls from it to the last; the sum of both gains, minus that of standard "
        "pairs, is above 0",
        requirements=(
            Requirement(measure="zigzag", arms=("tiny",), score="sum"),
            Requirement(measure="zigzag_change", arms=("tiny",), score="sum", side="below"),
            *_beats("tiny", "standard_pairs"),
        ),
    ),
    Claim(
        letter="h",
        sentence="Zigzagging the first step alone beats zigzagging every step, at equal calls.",
        rule="the sum of both gains, minus that of full-step zigzag, is above 0",
        requirements=_beats("tiny", "tiny_full_zigzag"),
    ),
    Claim(
        letter="i",
        sentence="Leaving the last action, on which the image cannot depend, untrained helps.",
        rule="the sum of both gains, minus that with the last action trained, is above 0",
        requirements=_beats("tiny", "last_action"),
    ),
    Claim(
        letter="j",
        sentence="Learning goes beyond the best base: guidance 2 and full cameras.",
        rule="per-view and joint gain are both above 0.5 dB and at least 5 standard errors",
        requirements=(
            Requirement(measure="gain", arms=("best_base",), bound=0.5),
            Requirement(measure="gain", arms=("best_base",), score="joint", bound=0.5),
            Requirement(measure="errors", arms=("best_base",), bound=5.0),
            Requirement(measure="errors", arms=("best_base",), score="joint", bound=5.0),
        ),
    ),
    Claim(
        letter="k",
        sentence="MV-GRPO beats Flow-GRPO-Fast at equal network calls.",
        rule="the gain of online MV-GRPO minus that of Flow-GRPO-Fast is above 0",
        requirements=_beats("tiny_mv_grpo_vlm", "tiny_flow_grpo_fast", score="per_view"),
    ),
    Claim(
        letter="l",
        sentence="Captions of the samples themselves beat captions made from prompts alone.",
        rule="the gain of online MV-GRPO minus that of offline MV-GRPO is above 0",
        requirements=_beats("tiny_mv_grpo_vlm", "tiny_mv_grpo_llm", score="per_view"),
    ),
    Claim(
        letter="m",
        sentence="The probability drift under other captions is small.",
        rule="the share of captions whose drift is below the clip range of 0.01 nats/element is "
        "above 0.95, online and offline",
        requirements=tuple(
            Requirement(measure="small_drift", arms=(arm,), bound=0.95)
            for arm in ("tiny_mv_grpo_vlm", "tiny_mv_grpo_llm")
        ),
    ),
    Claim(
        letter="n",
        sentence="DiffusionNFT gains more than Flow-GRPO for the same network calls.",
        rule="the gain of DiffusionNFT minus that of Flow-GRPO is above 0",
        requirements=_beats("tiny_diffusion_nft", "tiny_flow_grpo", score="per_view"),
    ),
)  # fmt: skip
"""Claims in their order."""
