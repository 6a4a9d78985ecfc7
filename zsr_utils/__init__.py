"""Zero-shot robustness of vision-language models: load, measure, record, draw.

Layers, imports point downwards only::

    run  book             execute notebooks, render the report and its card
    doctor  receipts      why a published accuracy is missed; published numbers and ours
    plots                 tables -> plotly figures
    experiments           one module a chapter: its conditions and statistics
    study                 what every chapter opens with
    records               rows, numbers and provenance on disk
    measure               conditions x images x models -> rows: the one loop
    jacobian              singular values of the encoder at an image
    conditions            how an image is shown again
    scores                rows -> numbers: pure functions of arrays and frames
    models  datasets  prompts

Layers are imported when first used, so that reading rows loads no torch.
"""

import importlib


_LAYERS = (
    "models", "datasets", "prompts", "scores", "conditions", "jacobian", "measure", "records", "study", "experiments",
    "plots",
)  # fmt: skip
_NAMES = {
    "load_model": "models", "load_vlm": "models", "load_dataset": "datasets", "seed_everything": "models",
    "open_study": "study", "read_rows": "records", "read_metrics": "records",
}  # fmt: skip

__all__ = [*_LAYERS, *_NAMES]


def __getattr__(name: str):
    if name in _LAYERS:
        return importlib.import_module(f"zsr_utils.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"zsr_utils.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'zsr_utils' has no attribute {name!r}")


def __dir__():
    return __all__
