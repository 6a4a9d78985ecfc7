"""Executed notebooks and their records -> the report as pages.

`python -m zsr_utils.book results/<model>@<data set> …` renders `_build/html`; with several folders the models stand
side by side. `--pdf` prints the pages afterwards.
"""
