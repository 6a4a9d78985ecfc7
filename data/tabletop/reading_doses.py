"""What fine-tunings answer that differ in a dose: `reading_doses.py MODEL_FOLDER... > reading_doses.csv`."""

import sys
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import yaml

from zsr_utils import scores
from zsr_utils.conditions import ORIGINAL, Head
from zsr_utils.datasets import Dataset, load_dataset, rendered, tabletop_scenes
from zsr_utils.experiments.typographic_attacks import QUOTE, WIDTH, cards
from zsr_utils.measure import measure
from zsr_utils.models import load_model


def dose(folder: Path | str, images: Dataset) -> pd.DataFrame:
    """What a fine-tuned model answers, a row a quantity, beside `dose`: the share of captions about a card's word."""
    net = load_model(f"local-dir:{Path(folder).resolve()}", device="cpu")
    plain, quote = (Head(net.classifier(images.class_names, t), images.class_names) for t in (images.templates, QUOTE))
    rows, quoted = (measure(net, images, head, cards(images)).groupby("condition") for head in (plain, quote))
    found = {f"named/{c}": scores.share_of("named")(rows.get_group(c)) for c in ("letters", "scrambled", "other_name")}
    found |= {f"accuracy/{c}": scores.accuracy(rows.get_group(c)) for c in ("original", "other_name")}
    found["read/other_name"] = scores.share_of("named")(quoted.get_group("other_name"))
    alone = {i: replace(s, kind=None, card=s.kind, card_width=WIDTH) for i, s in tabletop_scenes().items()}
    further = {"read/alone": rendered("cards alone", alone), "accuracy/sketch": load_dataset("tabletop", "sketch")}
    found |= {q: scores.accuracy(measure(net, pictures, plain, [ORIGINAL])) for q, pictures in further.items()}
    how = yaml.safe_load((Path(folder) / "training.yaml").read_text())["finetune"]
    run = {"dose": float(how["about_word"]), "seed": how.get("seed", 0)}
    return pd.DataFrame([{**run, "quantity": q, **asdict(e)} for q, e in found.items()])


if __name__ == "__main__":
    tables = [dose(folder, load_dataset("tabletop", limit=400)) for folder in sys.argv[1:]]
    pd.concat(tables).sort_values(["quantity", "dose", "seed"]).round(6).to_csv(sys.stdout, index=False)
