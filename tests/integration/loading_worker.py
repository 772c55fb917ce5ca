"""One of two processes that load a flow transformer in parts; notes the memory that it took."""

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


def work(folder: Path, weights: str) -> None:
    """Load the network in parts."""
    torch.set_num_threads(1)
    here = world("cpu")
    words = ["model.network=flow", "sampler.kind=flow", "reward.joint=per_view"]
    words += ["advantage.mode=per_view", f"model.weights={weights}", "model.image_size=32"]
    words += ["model.finetune=full", "run.sharding=full", "rollout.kind=group"]
    config = load_config(overrides=[*words, "objective.kind=policy_gradient"])
    torch.zeros(2**20).sum()
    system, peak = build(config, here)
    network = system.backbone.network
    sums = {n: float(whole(p.detach()).double().sum()) for n, p in network.named_parameters()}
    types = sorted({str(p.dtype) for p in network.parameters()})
    record = {"peak": peak, "sums": sums, "types": types}
    (folder / f"{here.rank}.json").write_text(json.dumps(record), "utf-8")
    here.close()


if __name__ == "__main__":
    work(Path(sys.argv[1]), sys.argv[2])
