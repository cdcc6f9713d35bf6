"""Models of public packages in small configurations, as nobody prepared them, for `wild.py`.

Each entry builds a model and inputs of so many samples. Packages are imported where a model is built, so one that is
missing or broken costs its own models only. Families of packages have a file each; `MODELS` is the list of all.
"""

from wild_models import graphs, language, plain, science, vision, vision_timm
from wild_models.registry import Batch, Models, Wild

MODELS: Models = {}
for family in (plain, language, science, graphs, vision, vision_timm):
    MODELS.update(family.MODELS)

__all__ = ["MODELS", "Batch", "Wild"]
