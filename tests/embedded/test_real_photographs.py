"""The probes of chapters 02 to 05 on real photographs, through networks that this project did not make.

SqueezeNet with ImageNet weights becomes an image encoder in CLIP's text space by ConSE: the mean of the
class text features under its probabilities (Norouzi et al. 2014). No transformer, 227 px, no text tower:
what passes here assumes none of these. A ViT-B-32 with random weights stands for the encoders of other people.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.models.squeezenet import Fire
from torchvision.transforms import functional as TF

import zsr_utils as zsr
from zsr_utils import jacobian, scores
from zsr_utils.conditions import (
    PAPER,
    VARIANTS,
    Head,
    Perturbation,
    View,
    alignment,
    families,
    gaussian_noise,
    random_control,
)
from zsr_utils.experiments import bands, drift
from zsr_utils.measure import Pixels, measure
from zsr_utils.models import Model, register_model


DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
WEIGHTS = DATA / "weights" / "squeezenet1_0_imagenet_fp16.pt"
TEXTS = DATA / "weights" / "clip_vit_b32_text_imagenet.npz"
PHOTOGRAPHS = DATA / "images" / "imagenet-sample"
PACS = DATA / "images" / "pacs"
DOMAINS = ("photo", "art_painting", "cartoon", "sketch")
CLASSES = 10
# Rows of ImageNet's classes that stand for the classes of PACS. It has neither giraffe nor horse, house or person
# as such: zebra and gazelle; sorrel; barn, boathouse, mobile home, palace; ballplayer, groom, scuba diver.
IMAGENET_ROWS = {
    "dog": range(151, 269), "elephant": (385, 386), "giraffe": (340, 353), "guitar": (402, 546), "horse": (339,),
    "house": (425, 449, 660, 698), "person": (981, 982, 983),
}  # fmt: skip

pytestmark = pytest.mark.skipif(not WEIGHTS.exists(), reason="real photographs and weights are not on this machine")
needs_pacs = pytest.mark.skipif(not PACS.exists(), reason="the images of PACS are not on this machine")


class ConSE(nn.Module):
    """Probabilities over ImageNet's classes as weights of CLIP's class text features."""

    def __init__(self, classifier: nn.Module, texts: torch.Tensor):
        super().__init__()
        self.classifier = classifier
        self.register_buffer("texts", texts)
        self.logit_scale = nn.Parameter(torch.tensor(100.0).log())

    def encode_image(self, pixels):
        return self.classifier(pixels).softmax(1) @ self.texts

    @property
    def visual(self):
        return self

    def forward_intermediates(self, pixels, *, indices=None, intermediates_only=False, **_):
        """The call of open_clip's image towers; a map after every Fire module serves as a token grid."""
        maps = []
        for layer in self.classifier.features:
            pixels = layer(pixels)
            maps += [pixels] if isinstance(layer, Fire) else []
        found = {"image_intermediates": maps[-(indices or 0) :]}
        if intermediates_only:
            return found
        answers = self.classifier.classifier(pixels).flatten(1)
        return {**found, "image_features": answers.softmax(1) @ self.texts}


@register_model("squeezenet-conse")
def build(name, pretrained, precision):
    from torchvision.models import squeezenet1_0

    network = squeezenet1_0()
    network.load_state_dict({k: v.float() for k, v in torch.load(WEIGHTS, weights_only=True).items()})
    texts = F.normalize(torch.from_numpy(np.load(TEXTS)["features"]).float(), dim=-1)
    return Model(
        ConSE(network, texts), name=name, image_size=227, precision=precision,
        mean=[c / 255 for c in (123, 117, 104)], std=[1 / 255] * 3,  # the network takes 0 to 255, centred
        transform=lambda image: TF.to_tensor(TF.center_crop(TF.resize(image.convert("RGB"), 256), [227, 227])),
    )  # fmt: skip


@pytest.fixture(scope="module")
def net():
    return zsr.load_model("squeezenet-conse")


@pytest.fixture(scope="module")
def task(net):
    """Ten classes whose photograph is named rightly among the ten, and every ordered pair of them."""
    files = sorted(p for p in PHOTOGRAPHS.iterdir() if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    chosen = range(0, 1000, 25)
    pixels = torch.stack([net.from_pil(Image.open(files[i])) for i in chosen])
    texts = net.net.texts[list(chosen)]
    right = net.logits(pixels, texts).argmax(1) == torch.arange(len(texts))
    keep = right.nonzero()[:CLASSES, 0]
    classifier, pixels = texts[keep], alignment.saved_as_png(pixels[keep])
    rows = pd.DataFrame({"sample_id": [files[chosen[i]].name for i in keep], "label": range(CLASSES)})
    pairs = alignment.make_pairs(rows, per_class=1).iloc[::6].reset_index(drop=True)
    index = rows.set_index("sample_id").label
    return pairs, pixels, classifier, index


@pytest.fixture(scope="module")
def aligned(net, task):
    pairs, pixels, _, index = task
    sources = pixels[torch.tensor(index[pairs.sample_id].to_numpy())]
    targets = alignment.encode(net, pixels)[torch.tensor(index[pairs.target_id].to_numpy())]
    labels = torch.tensor(pairs.target_label.to_numpy())
    found = alignment.align(
        net, sources, alignment.Match(targets), until=alignment.Answer(net, task[2], labels), optimizer="pgd",
        eps=8 / 255, momentum=0.7, max_steps=10, eight_bit=True, batch_size=15, names=list(pairs.sample_id),
    )  # fmt: skip
    return sources, targets, found


def test_systematic_accuracy_of_real_photographs(net, task, aligned, capsys):
    pairs, _, classifier, _ = task
    sources, targets, found = aligned
    rows, _ = alignment.score(net, pairs, sources, found, classifier, targets, condition="aligned")
    systematic, hit = (rows.prediction == rows.label).mean(), (rows.prediction == rows.target_label).mean()
    with capsys.disabled():
        print(
            f"\nSqueezeNet + ConSE, {len(rows)} pairs of photographs: systematic accuracy {systematic:.1%}, target hit "
            f"{hit:.1%}, reached {rows.reached.mean():.0%} in {rows.steps.median():.0f} steps (median), RMS "
            f"{rows.rms.median():.2f} grey levels, SSIM {rows.ssim.median():.3f}"
        )
    before = F.cosine_similarity(alignment.encode(net, sources), targets).numpy()
    # pair by pair a chaotic search may fail on another processor; on average it must not
    assert scores.paired_difference(before, rows.target_cosine.to_numpy()).low > 0 and systematic < 1
    assert rows.linf.max() <= 8.001 and (rows.linf.round(3) % 1 == 0).all()


def test_the_spectrum_of_a_real_network(net, aligned):
    sources = aligned[0]
    values, _, right = jacobian.top_singular(net, sources[0], 4)
    assert (values[:-1] >= values[1:]).all() and values[-1] > 0
    rows = jacobian.linear_error(net, sources[:1], right[:1].float(), [0.002])
    assert rows.lipschitz[0] == pytest.approx(values[0].item(), rel=0.2)


def test_noise_on_real_photographs(net, task, aligned):
    head = Head(task[2], tuple(map(str, range(CLASSES))))
    sources, moved = aligned[0][:4], alignment.saved_as_png(aligned[2].pixels[:4])
    for pixels in (sources, moved, random_control("abcd", sources, moved)):
        shown = Pixels(list("abcd"), np.zeros(4, int), pixels)
        rows = measure(net, shown, head, gaussian_noise([1, 8], conversion="round"), draws=2)
        drift = rows.groupby("severity").drift.mean()
        assert 0 < drift.iloc[0] < drift.iloc[1] <= 2


def test_a_text_target_needs_a_text_tower(net, task):
    with pytest.raises(TypeError, match="no text tower"):
        alignment.text_targets(net, ["a photo of a dog"], torch.zeros(1, 512))


# chapter 05


def folder(domain: str, limit: int):
    return zsr.load_dataset(str(PACS / domain), limit=limit)


def unchanged(image, *_):
    whole = Image.new("L", image.size, 255)
    return View(image, whole, whole)


SAME = Perturbation("same", "0", 0, in_place=True, keeps_size=True, change=unchanged)
FOR_VIT = [*families([*PAPER, *VARIANTS], phrase="Answer is {}", text_height=1 / 16), SAME]
FOR_SQUEEZENET = families(units="pixels", phrase="Answer is {}")


@pytest.fixture(scope="module")
def vit():
    return zsr.load_model("ViT-B-32")


@pytest.fixture(scope="module")
def seen_by_vit(vit):
    """An image of every domain, what a ViT of random weights says of all their views, and its passes."""
    first, passes = folder("photo", 7), []
    samples = [(d, folder(d, 7).samples[k]) for k, d in enumerate(DOMAINS)]
    images = replace(first, name="pacs", samples=[replace(s, sample_id=f"{d}/{s.sample_id}") for d, s in samples])
    classifier = F.normalize(torch.randn(7, 512, generator=torch.Generator().manual_seed(0)), dim=1)
    hook = vit.net.visual.conv1.register_forward_hook(lambda _, given, __: passes.append(len(given[0])))
    found = drift.measure(vit, images, classifier, FOR_VIT)
    hook.remove()
    return images, found, sum(passes)


@needs_pacs
def test_a_vision_transformer_sees_every_view_once(seen_by_vit):
    images, found, passes = seen_by_vit
    assert passes == len(images) * (1 + len(FOR_VIT)) and len(found.rows) == len(images) * len(FOR_VIT)
    assert set(found.rows.family) == {*PAPER, *VARIANTS, "same"}
    assert found.layers.groupby(["sample_id", "family", "instance"]).layer.nunique().eq(12).all()
    assert list(found.clean.units) == ["embedding", *range(1, 13)]


@needs_pacs
def test_rows_of_a_vision_transformer_are_finite(seen_by_vit):
    _, found, _ = seen_by_vit
    rows = found.rows
    spectra = rows.filter(regex="^(share|coherence)_").columns
    numbers = rows.drop(columns=[*spectra, "sample_id", "family", "instance"])
    assert np.isfinite(numbers.astype(float)).all(axis=None)
    assert np.isfinite(found.layers[["drift", "energy", "clean_energy"]]).all(axis=None)
    keeps_size = {p.family for p in FOR_VIT if p.keeps_size}
    assert rows.loc[~rows.family.isin(keeps_size), spectra].isna().all(axis=None)
    moved = rows[rows.family.isin(keeps_size - {"same"})]
    np.testing.assert_allclose(moved.filter(like="share_").sum(axis=1), 1)
    filled = [f"coherence_{k + 1}" for k in np.unique(scores.band_of(7, 7, drift.BANDS))]
    assert moved[filled].stack(future_stack=True).between(0, 1 + 1e-9).all()


@needs_pacs
def test_a_drift_is_zero_only_where_the_pixels_are_the_same(vit, seen_by_vit):
    images, found, _ = seen_by_vit
    still = found.rows[found.rows.drift == 0]
    assert (still.family == "same").sum() == len(images)
    for _, row in still.iterrows():
        view = vit.from_pil(drift.view(images, FOR_VIT, row))
        assert torch.equal(view, vit.from_pil(images.image(row.sample_id))), f"{row.family} {row.instance}"


@needs_pacs
def test_energy_of_original_content_differs_only_where_there_is_fill(seen_by_vit):
    rows = seen_by_vit[1].rows
    whole = rows.family.isin(["same", "translation", "scale", "scale_restored", "rotation_content"])
    whole |= rows.family.str.startswith("pad_crop") & rows.instance.str.startswith("-")
    assert (rows.energy_content[whole] == rows.energy[whole]).all()
    assert (rows.energy_content[~whole] != rows.energy[~whole]).all()


@needs_pacs
def test_a_vision_transformers_layers_are_its_embedding_and_its_tokens(vit):
    pixels = torch.stack([vit.from_pil(image) for _, image, _ in folder("photo", 2)])
    with torch.no_grad():
        features, grids = vit.encode_layers(pixels)
        torch.testing.assert_close(features, vit.encode_image(pixels))
        torch.testing.assert_close(grids[-1], vit.encode_tokens(pixels))
    assert [grid.shape for grid in grids] == [(2, 7, 7, 768)] * 12


@pytest.fixture(scope="module")
def classifier(net):
    texts = [net.net.texts[list(rows)].mean(0) for rows in IMAGENET_ROWS.values()]
    return F.normalize(torch.stack(texts), dim=1)


@pytest.fixture(scope="module", params=DOMAINS)
def moved(request, net, classifier):
    """One image a class of a domain, and what SqueezeNet says of their views."""
    images = folder(request.param, len(classifier))
    assert images.class_names == tuple(IMAGENET_ROWS)
    return images, drift.measure(net, images, classifier, FOR_SQUEEZENET, detail="tokens")


@needs_pacs
def test_maps_of_a_convolutional_network_are_square_grids(net):
    pixels = torch.stack([net.from_pil(image) for _, image, _ in folder("photo", 2)])
    with torch.no_grad():
        features, grids = net.encode_layers(pixels)
        torch.testing.assert_close(features, net.encode_image(pixels))
        torch.testing.assert_close(grids[-1], net.encode_tokens(pixels))
    assert [grid.shape[1:3] for grid in grids] == [(55, 55)] * 3 + [(27, 27)] * 4 + [(13, 13)]


@needs_pacs
def test_flips_and_drifts_of_real_images(moved, capsys):
    images, found = moved
    rows = found.rows
    control = drift.control(found.clean).query("kind == 'any'")
    rates = scores.instability(rows).pivot(index="family", columns="quantity", values="value")
    table = scores.drift_ratios(rows, control, answers="all", resamples=100).query("quantity == 'ratio'")
    ratios = table.set_index("family").value
    with capsys.disabled():
        print(
            f"\nSqueezeNet + ConSE, {len(images)} images of PACS {images.name}, {len(rows)} views: "
            f"clean accuracy {(found.clean.predictions == found.clean.labels).mean():.0%}, IFR {rates.ifr['any']:.1%}, "
            f"IV {rates.iv['any']:.0%}, drift ratio {ratios.median():.3f} (median of the families; "
            + ", ".join(f"{family} {ratio:.3f}" for family, ratio in ratios.items())
            + ")"
        )
    assert (rates.ifr <= rates.iv).all() and rates.iv["any"] >= rates.iv.drop("any").max()
    assert ratios.index.to_list() == list(PAPER)
    assert ratios["scale"] < 1, "a photograph at nine tenths of its size is as far as another photograph"
    assert ((rows.margin > 0) == (rows.prediction == rows.clean_prediction)).all()
    written = rows[rows.family == "text_semantic"]
    assert (written.word_label != written.clean_prediction).all()


@needs_pacs
def test_changes_of_a_convolutional_map_have_a_spectrum(moved):
    rows = moved[1].rows
    keeps_size = rows.family.isin({p.family for p in FOR_SQUEEZENET if p.keeps_size})
    np.testing.assert_allclose(rows[keeps_size].filter(like="share_").sum(axis=1), 1)
    assert rows[keeps_size].filter(like="coherence_").stack(future_stack=True).between(0, 1 + 1e-9).all()
    assert rows[~keeps_size].filter(regex="^(share|coherence)_").isna().all(axis=None)
    assert rows.filter(like="energy").gt(0).all(axis=None)


@needs_pacs
def test_a_row_is_what_the_network_says_of_that_picture_alone(net, classifier, moved):
    images, found = moved
    for _, row in found.rows.groupby("family").nth(5).iterrows():
        pictures = [images.image(row.sample_id), drift.view(images, FOR_SQUEEZENET, row)]
        before, after = (net.encode_image(net.from_pil(picture)[None]) for picture in pictures)
        assert row.cosine == pytest.approx(F.cosine_similarity(before.double(), after.double()).item(), abs=1e-6)
        assert row.prediction == net.logits_of(after, classifier).argmax()


@needs_pacs
def test_bands_of_real_photographs(net, classifier):
    images = folder("photo", 8)
    pixels = alignment.saved_as_png(images.pixels([s.sample_id for s in images.samples], net.from_pil))
    level, shared = 2 / 255, {"bands": ["low", "high"]}
    swept = bands.sweep(net, pixels, classifier, cutoffs=[0, 0.25, 1]).set_index(["filter", "cutoff"]).sort_index()
    for everything in (swept.loc[("low_pass", 1.0)], swept.loc[("high_pass", 0.0)]):
        assert (everything.prediction == everything.clean_prediction).all()
    colour, clean = (swept.loc[("low_pass", c)].sort_values("row").margin.to_numpy() for c in (0.0, 1.0))
    assert (colour < clean).mean() > 0.5, "most answers should hang on more than the mean colour"
    noisy = bands.noise(net, pixels, classifier, rms=[level], draws=2, **shared).groupby("band")
    attacked = bands.attack(net, pixels, classifier, rms=[level], steps=3, **shared)
    assert (attacked.achieved_rms <= level + 0.5 / 255).all() and attacked.flip.any()  # half a grey level: rounding
    for band, found in attacked.groupby("band"):
        noise_rows = noisy.get_group(band)
        assert found.flip.mean() >= (noise_rows.prediction != noise_rows.clean_prediction).mean()
        assert found.drift.mean() > noise_rows.drift.mean() and found.outside.between(0, 1).all()
