"""The table of docs/models.md, made from the recipes and from what networks are.

``python -m tests.models_table`` writes it anew after a recipe or a network was added.
"""

from pathlib import Path
from types import MappingProxyType

from mvczigal_ref.cli.recipes import network_of
from mvczigal_ref.config import TrainConfig
from mvczigal_ref.models.lora import LORA_TARGETS
from mvczigal_ref.models.unet.policy import SINGLE_VIEW_LORA_TARGETS
from mvczigal_ref.preflight.flow_sizes import PUBLISHED_FLOW
from mvczigal_ref.preflight.unet_sizes import PUBLISHED_UNETS
from mvczigal_ref.recipes import RECIPES

__all__ = ["BEGIN", "END", "PAGE", "main", "table"]

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- table of models -->\n", "<!-- end of the table -->\n"
HEAD = ("network", "`model.network`", "pipeline", "steps", "guidance", "a LoRA adapts", "recipes")
EMBEDS = MappingProxyType({"lcm_sdxl": True, "black-forest-labs/FLUX.1-dev": True})


def table() -> str:
    """Make the table: one row per network of full size, its recipes together."""
    configs = {name: build() for name, build in RECIPES.items()}
    rows: dict[str, list[str]] = {}
    for name, config in configs.items():
        if not config.model.weights.startswith("tiny"):
            rows.setdefault(network_of(config), []).append(name)
    lines = [line(HEAD), line(["---"] * len(HEAD))]
    return "".join([*lines, *(row(network, [configs[n] for n in names], names)
                              for network, names in rows.items())])  # fmt: skip


def row(network: str, configs: list[TrainConfig], names: list[str]) -> str:
    """Make one row."""
    first = configs[0]
    pipeline, targets = about(first)
    steps = list(dict.fromkeys(steps_of(config) for config in configs))
    scales = sorted({config.sampler.guidance_scale for config in configs})
    shown = " or ".join(f"{scale:g}" for scale in scales)
    embedded = EMBEDS.get(first.model.weights, "lcm-sdxl" in str(dict(first.model.sources)))
    form = "an input" if embedded else "a doubled batch"
    guidance = "none" if scales == [1.0] and not embedded else f"{form}, {shown}"
    ends = ", ".join(f"`{target}`" for target in targets)
    recipes = ", ".join(f"`{name}`" for name in names)
    kind = f"`{first.model.network}`"
    return line([network, kind, pipeline, "; ".join(steps), guidance, ends, recipes])


def about(config: TrainConfig) -> tuple[str, tuple[str, ...]]:
    """Name the pipeline of a network, and the ends of the layers that a LoRA adapts."""
    weights = config.model.weights
    if config.model.network == "flow":
        family = PUBLISHED_FLOW[weights].family
        return f"`{family.pipeline}`", tuple(family.policy.lora_targets)
    if config.model.network == "unet":
        return f"`{PUBLISHED_UNETS[weights].family.pipeline}`", SINGLE_VIEW_LORA_TARGETS
    return "`TextToMultiviewPipeline`", LORA_TARGETS


def steps_of(config: TrainConfig) -> str:
    """Say on which grid a recipe samples."""
    sampler = config.sampler
    kind = f"`{config.flow.kernel}`" if sampler.kind == "flow" else f"`{sampler.kind}`"
    trailing = ", trailing" if sampler.spacing == "trailing" else ""
    return f"{sampler.num_steps} of {kind}{trailing}"


def line(cells: list[str] | tuple[str, ...]) -> str:
    """Lay out one line."""
    return f"| {' | '.join(cells)} |\n"


def main() -> None:
    """Replace the table in the page."""
    text = PAGE.read_text("utf-8")
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    PAGE.write_text(f"{text[:start]}\n{table()}\n{text[end:]}", "utf-8")


if __name__ == "__main__":
    main()
