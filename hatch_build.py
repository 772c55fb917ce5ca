"""Put the shipped weights inside the wheel, where the installed package looks for them."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ShippedWeights(BuildHookInterface):
    """Include the folders of weights; an editable install reads them from the tree instead."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add to a standard wheel those folders that the tree has."""
        for name in ("tiny_world", "tiny_flow"):
            folder = Path(self.root) / "fixtures" / name
            if version != "editable" and folder.is_dir():
                build_data["force_include"][str(folder)] = f"mvczigal_ref/fixtures/{name}"
