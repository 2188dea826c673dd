"""RoAd as distributed interchange intervention: hidden states rotated at chosen layers, positions and subspaces.

tasks = Intervention.load("tasks")
with intervened(model, tasks.select("german")):
    model.generate(**inputs)
"""

from .hooks import capture, intervened
from .intervention import Intervention
from .positions import Positions
from .sites import site
from .subspace import Subspace, check_disjoint

__all__ = ["Intervention", "Positions", "Subspace", "capture", "check_disjoint", "intervened", "site"]
