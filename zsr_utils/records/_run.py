"""A run: the rows, numbers and provenance that one notebook leaves behind."""

import html
import importlib.metadata
import json
import math
import platform
import re
import subprocess
import time
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from zsr_utils.records._files import FORMAT, result_folder, write_frame, write_json
from zsr_utils.scores import Estimate


PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "numpy", "scipy", "pandas", "umap-learn", "plotly")
NAME = re.compile(r"[a-z0-9_]+(/[a-z0-9_]+)+")
RECORD = "application/papermill.record/"
FEW = 30  # images: a share of so many has an interval of 30 points or more


class Run:
    """What one notebook measures with one model on one data set.

    If its `folder` holds results of another checkpoint of the same name, the first file that is written moves them to
    `<model>-<8 digits of its fingerprint>@<data set>`; an embedded model that was trained again replaces its results.

    Args:
        notebook: File name of the notebook without `.ipynb`.
        **parameters: Everything in the notebook's `parameters` cell.
    """

    def __init__(self, notebook: str, net, images, **parameters):
        self.notebook, self.parameters = notebook, parameters
        self._dataset = parameters.get("dataset") or images.name
        self.folder = result_folder(net.name, self._dataset, notebook, net.pretrained)
        self.metrics: dict[str, Estimate] = {}
        self.missing: dict[str, Estimate] = {}  # what there were no samples for
        self._net, self._images = net, images
        self._prompts: dict[str, list[str]] = {}
        self._began = time.perf_counter()

    def __getitem__(self, name: str) -> Estimate:
        return self.metrics[name]

    @property
    def caution(self) -> str:
        """What must be known before a number of this model on these images is believed, or an empty string."""
        net, images, found = self._net, self._images, []
        if net.trained_on and net.trained_on != images.name:
            found += [f"{net.name} was trained on {net.trained_on} alone: its accuracies on {images.name} mean nothing"]
        if len(images) < FEW:
            found += [f"{len(images)} images are too few for most comparisons to be decided"]
        return "; ".join([*found, *filter(None, [images.caution, net.note])])

    def metric(self, name: str, estimate: Estimate) -> Estimate:
        """Keep a number under `topic/quantity[/qualifier]`; later pages can quote it by that name.

        One that is not a number was not measured: its name is among the `missing` of the provenance.
        """
        if not NAME.fullmatch(name):
            raise ValueError(f"metric name is {name!r}, allowed is 'topic/quantity' in lower snake case.")
        kept, other = self.metrics, self.missing
        if math.isnan(estimate.value):
            kept, other = other, kept
        kept[name] = estimate
        other.pop(name, None)
        return estimate

    def prompts(self, name: str, templates) -> None:
        """Record a prompt set that was used."""
        self._prompts[name] = list(templates)

    def table(self) -> pd.DataFrame:
        """The metrics as a frame: name, value, low, high, interval, n, unit."""
        return pd.DataFrame([{"name": k, **asdict(v)} for k, v in self.metrics.items()])

    def save_rows(self, rows: pd.DataFrame, name: str = "samples") -> None:
        """Write per-sample rows to `<name>.parquet`."""
        self._make_room()
        write_frame(self.folder / f"{name}.parquet", rows)

    def say(self, text: str) -> None:
        """Show a sentence of the report, as Markdown."""
        from IPython.display import Markdown, display

        display(Markdown(typeset(text)))

    def save(self) -> Path:
        """Write `metrics.json` and `provenance.json`, and leave every number in the notebook for other pages."""
        self._make_room()
        numbers = self.table().replace([math.inf, -math.inf, math.nan], None).to_dict("records")  # of a bound: none
        write_json(self.folder / "metrics.json", numbers)
        write_json(self.folder / "provenance.json", self.provenance())
        for name, estimate in self.metrics.items():
            glue(name, estimate)
        return self.folder

    def _make_room(self) -> None:
        """Move the results of another checkpoint aside, its provenance last: a stop in between is made up for."""
        net, known = self._net, self.folder / "provenance.json"
        if net.trained_on or not known.is_file():
            return
        owner = json.loads(known.read_text())["fingerprint"]
        if owner == net.fingerprint:
            return
        tag = "-".join(filter(None, (net.pretrained, owner[:8])))
        aside = result_folder(net.name, self._dataset, self.notebook, tag)
        aside.mkdir(parents=True, exist_ok=True)
        files = [p for p in self.folder.glob("[!.]*") if p.is_file()]  # a notebook that is running has a hidden name
        for file in sorted(files, key=lambda p: p == known):
            file.replace(aside / file.name)

    def provenance(self) -> dict:
        """Everything needed to say where these numbers come from."""
        net, images = self._net, self._images
        of_net = ("pretrained", "fingerprint", "activation", "precision", "image_size", "preprocessing")
        return {
            "format": FORMAT,
            "notebook": self.notebook,
            "model": net.name,
            **{name: getattr(net, name) for name in of_net},
            "caution": self.caution,
            "not_measured": list(self.missing),
            "dataset": images.name,
            "dataset_fingerprint": images.fingerprint,
            "images": len(images) - len(images.unreadable),
            "unreadable": dict(images.unreadable),
            "left_out": {why: f"{count}, such as {first!r}" for why, (count, first) in images.left_out.items()},
            "notes": list(images.notes),
            "class_names": list(images.class_names),
            "prompts": self._prompts,
            "parameters": self.parameters,
            "seed": self.parameters.get("seed"),
            "versions": _versions(),
            **_git(),
            "device": _device(net.device),
            "seconds": round(time.perf_counter() - self._began, 1),
        }

    def show_provenance(self):
        """The provenance as a folded box."""
        from IPython.display import HTML

        cells = ((html.escape(key), _cell(value)) for key, value in self.provenance().items())
        table = "".join(f"<tr><th>{key}</th><td>{value}</td></tr>" for key, value in cells)
        summary = "<summary>Where these numbers come from</summary>"
        return HTML(f'<details class="zsr-provenance">{summary}<table>{table}</table></details>')


def parameters(namespace: dict) -> dict:
    """The parameters of a notebook: the plain values that its namespace holds after the `parameters` cell.

    Examples:
        >>> parameters({"seed": 0, "sizes": [1, 2], "_i1": "", "In": [], "plt": parameters})
        {'seed': 0, 'sizes': [1, 2]}
    """
    plain = (str, int, float, bool, list)
    return {k: v for k, v in namespace.items() if type(v) in plain and not k.startswith("_") and k not in ("In", "Out")}


def typeset(text: str) -> str:
    """Numbers as they are printed: a minus sign before them, a space before the percent sign.

    Examples:
        >>> typeset("ViT-B-32 moves by -0.5 points [-0.9, -0.1], 12% of them"), typeset("2020-01")
        ('ViT-B-32 moves by −0.5 points [−0.9, −0.1], 12\\xa0% of them', '2020-01')
    """
    text = re.sub(r"(?<![\w.)-])-(?=\d)", "−", text)
    return re.sub(r"(?<=\d) ?%", "\N{NO-BREAK SPACE}%", text)


def glue(name: str, estimate: Estimate) -> None:
    """Leave a number in the notebook under a name, for pages that quote it with the glue role."""
    from IPython.display import display

    for key, value in ((name, f"{estimate.value:.4g}"), (f"{name}:pct", f"{estimate:pct}")):
        display({RECORD + "text/plain": value}, raw=True, metadata={"scrapbook": {"name": key, "mime_prefix": RECORD}})


def _cell(value) -> str:
    if isinstance(value, dict):
        return "<br>".join(f"{html.escape(str(k))}: {_cell(v)}" for k, v in value.items()) or "none"
    if isinstance(value, list):
        return html.escape(", ".join(map(str, value)))
    return html.escape(str(value))


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _git() -> dict:
    def git(*arguments: str) -> str | None:
        options = {"capture_output": True, "text": True, "check": True, "cwd": Path(__file__).parent}
        try:
            return subprocess.run(["git", *arguments], **options).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None

    status = git("status", "--porcelain", "--untracked-files=no")
    return {"git": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}


def _device(device) -> str:
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    return f"cpu ({platform.machine()})"
