"""Records -> figures. Importing this layer sets the look of every plotly figure."""

from zsr_utils.plots import _style
from zsr_utils.plots._figures import accuracies, changes, heatmap, projection, similarity_histogram
from zsr_utils.plots._gallery import gallery


_style.use()

__all__ = ["accuracies", "changes", "gallery", "heatmap", "projection", "similarity_histogram"]
