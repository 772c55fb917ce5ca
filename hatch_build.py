"""Put the shipped weights inside the wheel, where the installed package looks for them."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ShippedWeights(BuildHookInterface):
    """Include `fixtures/tiny_world`; an editable install reads it from the tree instead."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the folder to a standard wheel, if the tree has it."""
        folder = Path(self.root) / "fixtures" / "tiny_world"
        if version != "editable" and folder.is_dir():
            build_data["force_include"][str(folder)] = "mvczigal_ref/fixtures/tiny_world"
