"""Pickles: a scorer's damaged file is converted or refused, and no code in it is ever run."""

import os
import pickle
import random
from pathlib import Path

import torch

from mvczigal_ref.models.weight_files import read_safetensors
from mvczigal_ref.reward.convert import convert_checkpoint
from tests.torture.damage import damaged
from tests.torture.tally import Tally, require_line


class Touch:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def torture(tally: Tally, chance: random.Random, count: int, folder: Path) -> None:
    """Damage files of torch.save in both layouts, and hide programs in them."""
    tensors = {"a.weight": torch.arange(12.0).view(3, 4), "b.bias": torch.ones(4)}
    mark, whole = folder / "ran", {}
    for zipped in (True, False):
        for name, content in {
            "plain": tensors,
            "wrapped": {"state_dict": tensors, "epoch": 3},
            "program": {"state_dict": tensors, "x": Touch(mark)},
        }.items():
            path = folder / "whole.pt"
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
            whole[name, zipped] = path.read_bytes()
    whole["bare", False] = pickle.dumps([Touch(mark)])
    for place in range(count):
        (name, zipped), content = chance.choice(list(whole.items()))
        source, target = folder / f"{place}.pt", folder / f"{place}.safetensors"
        with tally.attempt(f"{name} {'zip' if zipped else 'old'} {place}"):
            source.write_bytes(content if place % 10 == 0 else damaged(chance, content))
            try:
                convert_checkpoint(source, target)
            except ValueError as error:
                tally.note("refused")
                require_line(str(error), source.name)
                assert not target.exists()
            else:
                assert read_safetensors(target)
            assert not mark.exists(), "a program in the file was run"
            left = [path.name for path in folder.iterdir() if path.name.startswith(".")]
            assert not left, f"left {left}"
        for path in (source, target, mark):
            path.unlink(missing_ok=True)
