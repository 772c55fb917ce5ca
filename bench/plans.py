"""Plans of the package's recipes, measured anew and stored beside `plan`.

    python -m bench plans

Writes ``mvczigal_ref/preflight/plans.json``; ten seconds of CPU for each of full size.
"""

from mvczigal_ref.files import atomic_write, to_json
from mvczigal_ref.models.published import PUBLISHED
from mvczigal_ref.preflight.plan import plan
from mvczigal_ref.preflight.stored_plans import STORED, plan_key, plan_values
from mvczigal_ref.recipes import RECIPES, recipe


def main() -> None:
    """Measure every recipe for one process; one without sizes in the package has none stored."""
    plans = {}
    for name in RECIPES:
        config = recipe(name)
        if config.model.weights in ("tiny", "tiny_flow", *PUBLISHED):
            plans[plan_key(config, processes=1)] = plan_values(plan(config))
            print(name, flush=True)
    atomic_write(STORED, to_json(plans))


if __name__ == "__main__":
    main()
