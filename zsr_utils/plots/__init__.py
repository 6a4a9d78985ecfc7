"""Records -> figures. Importing this layer sets the look of every plotly figure."""

from zsr_utils.plots import _style
from zsr_utils.plots._figures import agreement, bars, curves, forest, heatmap, projection, similarity_histogram
from zsr_utils.plots._gallery import gallery, picture, side_by_side, signed_picture, with_thumbnails
from zsr_utils.plots._trends import doses, forests, paths, trend


_style.use()
