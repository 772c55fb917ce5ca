"""Export of what a run has trained, with its settings and base model on the card."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from mvczigal_ref.config import TrainConfig, to_dict
from mvczigal_ref.models.lora_weights import LoraWeights
from mvczigal_ref.models.model_card import CardFacts
from mvczigal_ref.models.policy_files import PolicyLayout, save_policy
from mvczigal_ref.models.published import PUBLISHED, published_sources

__all__ = ["export_policy"]


def export_policy(
    trained: LoraWeights | Any,  # noqa: ANN401 - or a policy of either kind
    config: TrainConfig,
    folder: Path,
    *,
    layout: PolicyLayout | None = None,
    facts: CardFacts | None = None,
) -> None:
    """Write what a run trained as other tools load it; see :func:`save_policy`.

    Args:
        trained: A LoRA, or a policy whose every weight was trained.
        config: The run; its settings and the base model go into the model card.
        folder: Replaced if it exists, whole or not at all.
        layout: The only layout wanted of a LoRA; every one that fits if None.
        facts: Results and the like for the model card, which gets settings and base here.

    Raises:
        ValueError: If the layout does not fit what was trained.
    """
    name = config.model.weights
    if name in PUBLISHED:
        sources = published_sources(name, config.model.sources)
        name = (sources.unet or sources.base).partition("@")[0]
    facts = replace(facts or CardFacts(), base=name, settings=to_dict(config))
    save_policy(trained, folder, facts=facts, layout=layout)
