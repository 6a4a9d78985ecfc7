"""A run: the rows, numbers and provenance that one notebook leaves behind."""

import importlib.metadata
import json
import math
import platform
import re
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd

from zsr_utils._cache import write_kept
from zsr_utils._text import as_html
from zsr_utils.records import _files
from zsr_utils.records._files import FORMAT, read_provenance, result_folder, write_json
from zsr_utils.records.chapters import ROOT, read_chapters
from zsr_utils.scores import Estimate, halves, source_ids


PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "numpy", "scipy", "pandas", "umap-learn", "plotly")
NAME = re.compile(r"[a-z0-9_]+(/[a-z0-9_]+)+")
FEW = 30  # images: a share of so many has an interval of 30 points or more


class Run:
    """What one notebook measures with one model on one data set; nothing is written before `save`.

    If its `folder` holds the result of other images or parameters then, that moves to `earlier/<8 digits>` in it, and
    that of another checkpoint of the same name to `<model>@<8 digits of its fingerprint>@<data set>`, which is said; an
    embedded model that was trained again replaces its result.
    """

    def __init__(self, notebook: str, net, images, **parameters):
        self.notebook, self.parameters = notebook, parameters
        self._dataset = parameters.get("dataset") or images.name
        model, tag = parameters.get("model", net.name), parameters.get("pretrained", net.pretrained)
        self.folder = result_folder(model, self._dataset, notebook, tag or None)
        self.metrics: dict[str, Estimate] = {}
        self._net, self._images = net, images
        self._halves: dict[str, dict] = {}  # of the numbers that answer the chapter's question
        self.prompts: dict[str, list[str]] = {}  # templates of the prompt sets that were used
        self._rows: dict[str, pd.DataFrame] = {}
        self._files: dict[str, str] = {}  # digests
        self._began = time.perf_counter()

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
        """Keep a number under `topic/quantity[/qualifier]`; one that was not measured is named by the provenance."""
        if not NAME.fullmatch(name):
            raise ValueError(f"metric name is {name!r}, allowed is 'topic/quantity' in lower snake case.")
        reason = "" if math.isnan(estimate.value) else _files.wrong_number(_record(name, estimate))
        if reason:
            raise ValueError(f"{reason}: allowed are finite numbers, low not above high.")
        self.metrics[name] = estimate
        return estimate

    @cached_property
    def _answers(self) -> set[str]:
        """Names of the numbers that answer the chapter's question."""
        known = read_chapters(whole=False) if (ROOT / "chapters.yaml").is_file() else {}
        return set(known.get(self.notebook, {"numbers": ()})["numbers"])

    def made_of(
        self, names: Sequence[str], rows: pd.DataFrame, make: Callable[[pd.DataFrame], Sequence[float]]
    ) -> None:
        """Keep what numbers are on `halves` of their images, those of them that answer the chapter's question."""
        wanted = {name: at for at, name in enumerate(names) if name in self._answers}
        if wanted and (found := halves(rows, lambda half: np.asarray(make(half))[[*wanted.values()]])) is not None:
            images = int(source_ids(rows).nunique())
            for name, values in zip(wanted, found.T):
                self._halves[name] = {"images": images, "values": values.tolist()}

    def table(self) -> pd.DataFrame:
        """What was measured: name, value, low, high, interval, n, unit."""
        return pd.DataFrame([{"name": k, **asdict(v)} for k, v in self._measured().items()])

    def _measured(self) -> dict[str, Estimate]:
        return {name: estimate for name, estimate in self.metrics.items() if not math.isnan(estimate.value)}

    def save_rows(self, rows: pd.DataFrame, name: str = "samples") -> None:
        """Rows that `save` writes to `<name>.parquet`."""
        self._rows[f"{name}.parquet"] = rows

    def say(self, text: str) -> None:
        from IPython.display import Markdown, display

        display(Markdown(typeset(text)))

    def save(self) -> Path:
        """Write rows, `metrics.json` and last `provenance.json`."""
        self._make_room()
        for name, rows in self._rows.items():
            write_kept(self.folder / name, rows)
        write_json(self.folder / "metrics.json", [_record(*number) for number in self._measured().items()])
        write_json(self.folder / "halves.json", self._halves)
        names = (*self._rows, "metrics.json", "halves.json")
        self._files = {name: _files.file_digest(self.folder / name) for name in names}
        write_json(self.folder / "provenance.json", self.provenance())
        return self.folder

    def _make_room(self) -> None:
        """Move the result of another checkpoint, of other images or of other parameters aside, and say so."""
        if not (self.folder / "provenance.json").is_file():
            return
        try:
            known = read_provenance(self.folder)
        except ValueError:  # damaged
            known = {}
        net, tag, to = self._net, known.get("fingerprint", "")[:8], None
        given, before = json.loads(json.dumps(self.parameters)), known.get("parameters", {})
        if tag and known["fingerprint"] != net.fingerprint and not net.trained_on:
            tag, what = "-".join(filter(None, (net.pretrained, tag))), "another checkpoint"
            to = result_folder(net.name, self._dataset, self.notebook, tag)
        elif known.get("dataset_fingerprint") != self._images.fingerprint:
            what = "other images" if known else "damaged records"
        elif given != before:
            differ = (f"{k} {before.get(k)!r}" for k in before | given if before.get(k) != given.get(k))
            what = f"other parameters ({', '.join(differ)})"
        else:
            return
        aside = _files.set_aside(self.folder, to).relative_to(_files.results_root())
        print(f"The result that was here, of {what}, is kept in {str(aside)!r} of the results.")

    def provenance(self) -> dict:
        import torch

        net, images, cpu = self._net, self._images, f"cpu ({platform.machine()})"
        changed = _git("status", "--porcelain", "--untracked-files=no")
        of_net = ("pretrained", "fingerprint", "activation", "precision", "image_size", "preprocessing")
        return {
            "format": FORMAT,
            "notebook": self.notebook,
            "model": net.name,
            **{name: getattr(net, name) for name in of_net},
            "caution": self.caution,
            "not_measured": [name for name in self.metrics if name not in self._measured()],
            "dataset": images.name,
            "dataset_fingerprint": images.fingerprint,
            "images": len(images) - len(images.unreadable),
            "unreadable": dict(images.unreadable),
            "left_out": {why: f"{count}, such as {first!r}" for why, (count, first) in images.left_out.items()},
            "notes": list(images.notes),
            "class_names": list(images.class_names),
            "prompts": self.prompts,
            "parameters": self.parameters,
            "seed": self.parameters.get("seed"),
            "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in PACKAGES}},
            "git": _git("rev-parse", "HEAD"),
            "dirty": None if changed is None else bool(changed),
            "device": torch.cuda.get_device_name(net.device) if net.device.type == "cuda" else cpu,
            "files": self._files,
            "seconds": round(time.perf_counter() - self._began, 1),
        }

    def show_provenance(self):
        """The provenance as a folded box."""
        from IPython.display import HTML

        cells = ((as_html(key), _cell(value)) for key, value in self.provenance().items())
        table = "".join(f"<tr><th>{key}</th><td>{value}</td></tr>" for key, value in cells)
        summary = "<summary>Where these numbers come from</summary>"
        return HTML(f'<details class="zsr-provenance tex2jax_ignore">{summary}<table>{table}</table></details>')


def _record(name: str, estimate: Estimate) -> dict:
    """A number as it is kept: plain values, and None for bounds that it has not."""
    bounds = {key: float(v) if math.isfinite(v := getattr(estimate, key)) else None for key in ("low", "high")}
    return {"name": name, **asdict(estimate), "value": float(estimate.value), "n": int(estimate.n), **bounds}


def parameters(namespace: Mapping) -> dict:
    """The plain values that a notebook's namespace holds after its `parameters` cell.

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
        >>> typeset(r"by \\-0\\.5 of 12\\%")
        'by −0\\\\.5 of 12\\xa0\\\\%'
    """
    text = re.sub(r"(?<![\w.)\\-])\\?-(?=\d)", "−", text)  # also where Markdown is escaped
    return re.sub(r"(?<=\d) ?(\\?%)", "\N{NO-BREAK SPACE}\\1", text)


def _cell(value) -> str:
    if isinstance(value, dict):
        return "<br>".join(f"{as_html(k)}: {_cell(v)}" for k, v in value.items()) or "none"
    return as_html(", ".join(map(str, value)) if isinstance(value, list) else value)


def _git(*arguments: str) -> str | None:
    """What git says, or None where there is no git or no repository."""
    options = {"capture_output": True, "text": True, "check": True, "cwd": Path(__file__).parent}
    try:
        return subprocess.run(["git", *arguments], **options).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
