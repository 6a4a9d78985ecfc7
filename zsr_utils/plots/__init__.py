"""Records -> figures. Importing this layer sets the look of every plotly figure."""

from zsr_utils.plots import _style
from zsr_utils.plots._figures import agreement, bars, curves, forest, heatmap, projection, similarity_histogram
from zsr_utils.plots._gallery import gallery, picture, signed_picture


_style.use()

__all__ = [
    "agreement",
    "bars",
    "curves",
    "forest",
    "gallery",
    "heatmap",
    "picture",
    "projection",
    "signed_picture",
    "similarity_histogram",
]
