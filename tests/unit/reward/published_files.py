"""Every published scorer's files, tiny and random, each in a folder of its own."""

import dataclasses
import json

import torch

from tests.unit.reward import test_hyperscore as hyperscore
from tests.unit.reward import tiny_files
from tests.unit.reward.slow_qwen import PIXELS, write_hpsv3

PER_VIEW = ("clip_score", "pickscore", "hpsv2", "hpsv3", "image_reward")
AXES = ("alignment", "geometry", "texture", "overall")


def write_published(root):
    """Write them all with their tokenizers and sizes; give each one's folder by its name."""
    folders = {name: root / name for name in (*PER_VIEW, "hyperscore")}
    for folder in folders.values():
        folder.mkdir()
    for name in ("clip_score", "pickscore"):
        tiny_files.write_clip(folders[name])
    tiny_files.write_hps(folders["hpsv2"])
    tiny_files.write_image_reward(folders["image_reward"])
    write_hpsv3(folders["hpsv3"])
    torch.save(dict(hyperscore.checkpoint()), folders["hyperscore"] / "model.pth")
    hyperscore.WORDS.save_pretrained(folders["hyperscore"])
    sizes = {
        "hpsv2": tiny_files.clip_config().to_dict(),
        "image_reward": tiny_files.blip_config().to_dict(),
        "hyperscore": dataclasses.asdict(hyperscore.SIZE),
        "hpsv3": {"pixels": PIXELS},
    }
    for name, size in sizes.items():
        (folders[name] / "size.json").write_text(json.dumps(size))
    return {name: str(folder) for name, folder in folders.items()}


def located(places, *names):
    """Say where these scorers are; each tokenizer lies with the weights."""
    found = {family: places[family] for family in {name.partition(".")[0] for name in names}}
    return {"weights": found, "tokenizers": found}
