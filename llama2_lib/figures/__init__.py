"""Arrays to matplotlib figures: no model, no file, no clock, no pyplot."""

from llama2_lib.figures.curves import bars_with_intervals, heatmap, lines
from llama2_lib.figures.theme import apply_theme, new_figure, theme
