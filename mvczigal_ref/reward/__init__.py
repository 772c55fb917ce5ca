"""Stage 3: score images. Images and prompts in, reward tables out, no gradients.

The way from a scorer's name to its numbers, here of ``reward.per_view=pickscore``:

1. ``config/method.py``: `RewardConfig` holds the name, its weight and the places of its files.
2. ``config/scorer_names.py``: a name that is no scorer's is refused, before torch is imported.
3. ``system/scorers.py``: every scorer that the settings name is built, on the run's device.
4. ``reward/registry.py``: settings become `ScorerOptions`; a name leads to a service, to the user's
   function, or to a builder.
5. ``reward/builders.py``: `PER_VIEW["pickscore"]` imports the scorer's module and loads it.
6. ``reward/weights.py``: the published files are found, and a network is built of their tensors.
7. ``reward/foreign_tensors.py``: the tensors are read; no pickle is run.
8. ``reward/clip_score.py``: `PickScore` gives one cosine per view, of images that
   ``reward/preprocessing.py`` has brought to the network's size.
9. ``reward/mixture.py``: with several scorers, their weighted sum.
10. ``method/score.py``: every sample under every text; ``reward/table.py`` holds the numbers.
"""

from mvczigal_ref.reward.aggregate import joint_to_views, mean_over_views, weighted_sum
from mvczigal_ref.reward.mixture import Mixture
from mvczigal_ref.reward.protocols import JointViewScorer, PerViewScorer

__all__ = [
    "JointViewScorer",
    "Mixture",
    "PerViewScorer",
    "joint_to_views",
    "mean_over_views",
    "weighted_sum",
]
