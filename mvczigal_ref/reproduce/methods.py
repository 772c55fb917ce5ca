"""Methods that are compared, and the gains that their papers publish."""

from dataclasses import dataclass
from typing import Final

__all__ = ["COMPARISONS", "ArmSet", "MethodRow", "MethodSet"]


@dataclass(frozen=True, slots=True)
class MethodRow:
    """One row of a comparison."""

    name: str
    """Name in the paper."""

    recipe: str
    """Recipe that runs it here."""

    published: tuple[float | None, ...] = ()
    """Gains over the paper's base model, one per column of its table; None where it has none."""

    settings: tuple[str, ...] = ()
    """Settings that differ from the recipe's, as ``section.name=value``, after the set's own."""

    other_name: str = ""
    """Name of the arm where :attr:`settings` differ, since several rows may share a recipe."""

    @property
    def arm(self) -> str:
        """Name of the method's run folders, before their seed."""
        return self.other_name or self.recipe


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmSet:
    """Methods that share their settings and a budget of network calls."""

    scores: tuple[str, ...]
    """Scores that are measured here, by their fields of an evaluation."""

    methods: tuple[MethodRow, ...]
    """Rows in the order of the tables; the first one's calls are the budget of all."""

    settings: tuple[str, ...] = ()
    """Settings of all methods, as ``section.name=value``; the command's own come after them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodSet(ArmSet):
    """One paper's comparison."""

    title: str
    """Subject of the comparison, and its paper."""

    paper: str
    """Identifier of the paper."""

    published: tuple[str, ...]
    """Measures of the paper, one per column."""

    pair: tuple[str, str]
    """Recipes that are compared by a paired test, the second minus the first; the second is the
    paper's full method."""


COMPARISONS: Final = {
    "multiview": MethodSet(
        title="Text to multi-view: arXiv:2505.20107, tables on 45 animals and on MATE-3D",
        paper="arXiv:2505.20107",
        published=(
            "HyperScore, 45 animals", "PickScore, 45 animals", "HyperScore, MATE-3D",
            "PickScore, MATE-3D",
        ),
        scores=("per_view", "joint"),
        methods=(
            MethodRow("MVC-ZigAL", "tiny", (None, None, 0.37, 0.013)),
            MethodRow("MV-PG", "tiny_mv_pg", (1.16, 0.007, None, None)),
            MethodRow("MV-DPO", "tiny_mv_dpo", (0.77, 0.004, None, None)),
            MethodRow("MV-DPO, frozen reference", "tiny_mv_dpo_frozen"),
            MethodRow("Diffusion-DPO on views", "tiny_mv_diffusion_dpo"),
            MethodRow("MV-RDL", "tiny_mv_rdl", (1.80, 0.007, None, None)),
            MethodRow("MV-RDL, joint density", "tiny_mv_rdl_joint"),
            MethodRow("MV-ZigAL", "tiny_mv_zigal", (1.94, 0.009, 0.28, 0.001)),
            MethodRow("WS-ZigAL", "tiny_ws_zigal", (None, None, 0.16, 0.013)),
            MethodRow("MVC-ZigPG", "tiny_mvc_zigpg"),
            MethodRow("per view alone", "tiny_per_view"),
            MethodRow("fixed threshold", "tiny_fixed_threshold"),
            MethodRow("fixed step size", "tiny_fixed_step_size"),
            MethodRow("full-step zigzag", "tiny_full_zigzag", (None, None, 0.24, None)),
            MethodRow("shuffled (control)", "tiny_shuffled"),
        ),
        pair=("tiny_mv_zigal", "tiny"),
        settings=("run.evaluation_noises=16",),
    ),
    "flow": MethodSet(
        title="Text to image: arXiv:2603.12648, FLUX.1-dev trained on HPS-v3",
        paper="arXiv:2603.12648",
        published=("HPS-v3", "HPS-v2"),
        scores=("per_view",),
        methods=(
            MethodRow("Flow-GRPO-Fast", "tiny_flow_grpo_fast"),
            MethodRow("Flow-GRPO", "tiny_flow_grpo", (0.014, 0.021)),
            MethodRow("DanceGRPO", "tiny_dance_grpo", (0.012, 0.017)),
            MethodRow("TempFlow-GRPO", "tiny_tempflow_grpo", (0.017, 0.027)),
            MethodRow("DiffusionNFT", "tiny_diffusion_nft", (0.016, 0.025)),
            MethodRow("MixGRPO", "tiny_mix_grpo"),
            MethodRow("MixGRPO-Flash", "tiny_mix_grpo_flash"),
            MethodRow("Granular-GRPO", "tiny_g2rpo"),
            MethodRow("BranchGRPO", "tiny_branch_grpo"),
            MethodRow("BranchGRPO, pruned", "tiny_branch_grpo_pruned"),
            MethodRow("GRPO-Guard", "tiny_grpo_guard"),
            MethodRow("GSPO", "tiny_gspo"),
            MethodRow("Flow-DPPO", "tiny_flow_dppo"),
            MethodRow("CPPO", "tiny_cppo"),
            MethodRow("Flash-GRPO", "tiny_flash_grpo"),
            MethodRow("AWM", "tiny_awm"),
            MethodRow("DGPO", "tiny_dgpo"),
            MethodRow("MV-GRPO (anchor)", "tiny_mv_grpo_anchor"),
            MethodRow("MV-GRPO (offline)", "tiny_mv_grpo_llm", (0.020, 0.031)),
            MethodRow("MV-GRPO (online)", "tiny_mv_grpo_vlm", (0.022, 0.035)),
            MethodRow("shuffled (control)", "tiny_flow_shuffled"),
        ),
        pair=("tiny_flow_grpo_fast", "tiny_mv_grpo_vlm"),
    ),
}  # fmt: skip
"""Every comparison by name."""
