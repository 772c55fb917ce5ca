"""One of two processes that load networks in parts; notes the memory that each took."""

import gc
import json
import sys
import threading
from pathlib import Path

import torch

from mvczigal_ref.config import load_config
from mvczigal_ref.distributed import world
from mvczigal_ref.models.sharding import whole
from mvczigal_ref.system import build_system
from mvczigal_ref.system.scorers import no_scorers


def anonymous() -> int:
    """Memory that no file stands behind [bytes]."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def build(config, here):
    """Build the system; give it and the most memory that this took."""
    done, peak, before = threading.Event(), [0], anonymous()

    def watch():
        while not done.wait(0.002):
            peak[0] = max(peak[0], anonymous() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    system = build_system(config, device=here.device, scorers=no_scorers(), world=here)
    done.set()
    watcher.join()
    return system, peak[0]


FLOW = [
    "model.network=flow", "sampler.kind=flow", "reward.joint=per_view", "rollout.kind=group",
    "advantage.mode=per_view", "objective.kind=policy_gradient",
]  # fmt: skip
SETTINGS = {
    "flow": FLOW,
    "multiview": [],
    "unet": ["model.network=unet", "sampler.prediction_type=epsilon", *FLOW[2:]],
}
"""Settings of each kind of network."""


def work(folder: Path, kinds: list[str]) -> None:
    """Load the networks in parts."""
    torch.set_num_threads(1)
    here, records = world("cpu"), {}
    torch.zeros(2**20).sum()
    for kind in kinds:
        words = [f"model.weights={folder / kind}", "model.image_size=32"]
        words += ["model.finetune=full", "run.sharding=full"]
        system, peak = build(load_config(overrides=[*words, *SETTINGS[kind]]), here)
        network = system.backbone.network
        sums = {n: float(whole(p.detach()).double().sum()) for n, p in network.named_parameters()}
        types = sorted({str(p.dtype) for p in network.parameters()})
        records[kind] = {"peak": peak, "sums": sums, "types": types}
        del system, network
        gc.collect()
    (folder / f"{here.rank}.json").write_text(json.dumps(records), "utf-8")
    here.close()


if __name__ == "__main__":
    work(Path(sys.argv[1]), sys.argv[2].split(","))
