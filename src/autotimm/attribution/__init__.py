"""Where in an image a score comes from: maps by several methods, and how far each can be believed."""

from autotimm.attribution.faithfulness import Faithfulness, ShuffledWeights, measured_faithfulness
from autotimm.attribution.maps import METHODS, Attributed, attribute, chosen_method, require_captum

__all__ = [
    "METHODS", "Attributed", "Faithfulness", "ShuffledWeights", "attribute", "chosen_method", "measured_faithfulness",
    "require_captum",
]  # fmt: skip
