"""Plans of the package's recipes, measured anew and stored beside `plan`.

    python -m bench plans [RECIPE ...]

Writes ``mvczigal_ref/preflight/plans.json`` after each; ten seconds of CPU for one of full size.
Without names all are measured, and what belongs to no recipe any more is left out.
"""

import json
import sys
from typing import Any

from mvczigal_ref.config import TrainConfig, load_config
from mvczigal_ref.errors import ConfigError
from mvczigal_ref.files import atomic_write, to_json
from mvczigal_ref.preflight.plan import plan
from mvczigal_ref.preflight.stored_plans import STORED, plan_key, plan_values
from mvczigal_ref.recipes import RECIPES, recipe


def main() -> None:
    """Measure recipes for one process; one without sizes in the package has none stored."""
    stored: dict[str, Any] = json.loads(STORED.read_text("utf-8"))
    keys = {name: plan_key(recipe(name), processes=1) for name in RECIPES}
    for name in sys.argv[1:] or keys:
        try:
            stored[keys[name]] = _measured(recipe(name))
        except ConfigError as error:
            print(f"{name}: {error}", flush=True)
            continue
        left = {key: stored[key] for key in dict.fromkeys(keys.values()) if key in stored}
        atomic_write(STORED, to_json(left))
        print(name, flush=True)


def _measured(config: TrainConfig) -> dict[str, Any]:
    on_cpu = plan(load_config(config, overrides=["run.device=cpu"]))
    if config.model.dtype != "fp32":  # in which alone the form of a LoRA depends on the device
        return plan_values(on_cpu, on_cpu)
    return plan_values(on_cpu, plan(load_config(config, overrides=["run.device=cuda"])))


if __name__ == "__main__":
    main()
