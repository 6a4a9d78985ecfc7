"""Adversarial attacks on networks whose nearest border is known, and the alarms on defences that hide a gradient."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny import tiny_model
from torch import nn
from torch.nn import functional as F

from zsr_utils import scores
from zsr_utils._cache import digest
from zsr_utils.conditions import ATTACKS, Batch, Fooled, Head, _attacks, attack, generator, random_noise
from zsr_utils.experiments import adversarial_attacks
from zsr_utils.measure import Pixels, measure


NAMES = ("red", "green", "blue", "grey", "white")
pytestmark = pytest.mark.usefixtures("module_cache")


class Answers(nn.Module):
    """Logits are `scale` times a linear map of the picture, less its mean; the head is the identity."""

    def __init__(self, directions, scale=1.0):
        super().__init__()
        self.directions, self.scale = nn.Parameter(directions.flatten(1)), scale
        self.logit_scale = nn.Parameter(torch.tensor(0.0))

    def encode_image(self, x):
        return self.scale * (x - 0.5).flatten(1) @ self.directions.T


def handle(net, **options):
    model = tiny_model(mean=(0.0,) * 3, std=(1.0,) * 3, **options)
    model.net, model.fingerprint = net.eval().requires_grad_(False), digest(getattr(net, "way", ""), net.state_dict())
    model.logits_of = lambda features, classifier: features @ classifier.T  # no cosine: borders stay planes
    return model


def directions(seed=1, side=8):
    return torch.from_numpy(generator("directions", (seed,)).standard_normal((5, 3, side, side), np.float32)) / 14


def world(n=40, amplitude=0.03) -> Pixels:
    """Pictures near mid-grey, each with the pattern of its class and a little noise."""
    labels = np.arange(n) % 5
    noise = [generator(f"s{i}", ("world",)).standard_normal((3, 8, 8), np.float32) for i in range(n)]
    patterns = directions() * 14
    pixels = 0.5 + amplitude * patterns[labels].clamp(-2, 2) + 0.01 * torch.from_numpy(np.stack(noise))
    return Pixels([f"s{i}" for i in range(n)], labels, pixels.clamp(0.02, 0.98))


HEAD = Head(torch.eye(5), NAMES)


def batch_of(net, images: Pixels, head=HEAD) -> Batch:
    return Batch(net, head, images.sample_ids, torch.tensor(images.labels), head.see(net, images.pixels))


def rows_of(net, images, conditions, head=HEAD, **options) -> pd.DataFrame:
    return measure(net, images, head, conditions, **options)


def few(images: Pixels, n: int) -> Pixels:
    return Pixels(images.sample_ids[:n], images.labels[:n], (images.pixels[:n] * 255).round() / 255)


@pytest.fixture
def net():
    return handle(Answers(directions(), 3.0))


@pytest.fixture
def images():
    return world()


def two_classes(net, images):
    """A head of two classes, images with its answers as labels, and how far each is from the border."""
    w, head = 3 * (net.net.directions[0] - net.net.directions[1]), Head(torch.eye(5)[:2], NAMES[:2])
    border = ((images.pixels - 0.5).flatten(1) @ w).abs() / w.abs().sum()
    return head, replace(images, labels=head.see(net, images.pixels).predictions.numpy()), border


def test_fgsm_breaks_what_the_closed_form_says(net, images):
    head, images, border = two_classes(net, images)
    for eps in border.clamp_max(0.019).quantile(torch.tensor([0.2, 0.5, 0.8])).tolist():  # no pixel leaves [0, 1]
        rows = rows_of(net, images, [attack("fgsm", eps)], head)
        assert ((rows.margin > 0).to_numpy() == (border > eps).numpy()).all()


def test_deepfool_stops_at_the_nearest_border(net, images):
    head, two, border = two_classes(net, images)
    rows, radius = rows_of(net, two, [attack("deepfool", 1.0)], head), 255 * border.numpy()
    assert (rows.margin < 0).all() and (rows.linf > radius).all() and (rows.linf < 1.02 * radius + 0.03).all()
    w, labels = 3 * net.net.directions, torch.tensor(images.labels)
    logits, apart = net.logits(images.pixels, torch.eye(5)), (w[labels][:, None] - w[None]).abs().sum(2)
    far = ((logits.gather(1, labels[:, None]) - logits) / apart).scatter(1, labels[:, None], torch.inf)
    rows = rows_of(net, images, [attack("deepfool", 1.0)])
    assert (rows.clean_prediction == rows.label).all()
    np.testing.assert_allclose(rows.linf, 1.02 * (255 * far.amin(1) + 0.0255), atol=0.05)


@pytest.mark.parametrize("options", [{}, {"eight_bit": True}, {"norm": "l2"}, {"space": "normalised"}])
def test_no_attack_leaves_its_ball(net, images, options):
    net.std.fill_(0.5 if "space" in options else 1.0)
    images, limit = few(images, 6), 3 if "space" in options else 6
    for name in ("bim", "pgd") if "norm" in options else ATTACKS:
        made = attack(name, 6 / 255, steps=8, queries=3, **options)
        change = 255 * (made.change(batch_of(net, images)) - images.pixels)
        size = change.flatten(1).norm(dim=1) if "norm" in options else change.abs()
        assert 0 < size.max() <= limit + 1e-3 or name == "deepfool"
        assert "eight_bit" not in options or torch.allclose(change, change.round(), atol=1e-3)


def test_eight_of_255_normalised_are_two_grey_levels_of_clip(net, images):
    net.std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    change = attack("fgsm", 8 / 255, space="normalised").change(batch_of(net, few(images, 5))) - few(images, 5).pixels
    np.testing.assert_allclose(255 * change.abs().amax((0, 2, 3)), [2.149, 2.090, 2.206], atol=1e-3)


def test_a_radius_of_0_changes_nothing(net, images):
    rows = rows_of(net, images, [attack(name, 0.0, steps=2, queries=2) for name in ATTACKS])
    assert (rows.linf == 0).all() and (rows.prediction == rows.clean_prediction).all()


def test_an_image_is_left_when_the_model_errs_and_not_touched_if_it_did_before(net, images):
    images = replace(images, labels=np.where(np.arange(40) < 5, (images.labels + 1) % 5, images.labels))
    rows = rows_of(net, images, [attack("bim", 0.3, steps=20)])
    assert (rows.margin < 0).all() and (rows.steps[5:] < 20).all() and rows.fooled.all()
    assert (rows[:5][["linf", "steps", "passes"]] == 0).all(axis=None) and (rows.passes[5:] == rows.steps[5:] + 1).all()
    assert (rows.linf <= rows.steps * 0.15 * 0.3 * 255 + 1e-3).all()


@pytest.mark.parametrize("name", ["nes", "spsa"])
def test_an_estimated_gradient_points_where_the_gradient_does(name):
    """On a linear model of 12 values, from 50 pairs of answers for each."""
    net, pixels = handle(Answers(directions(side=2)), image_size=2), torch.full((1, 3, 2, 2), 0.5)
    made, goal = attack(name, 0.1, queries=600).change.__self__.attack, Fooled(net, HEAD, torch.tensor([1]), "margin")
    state = made.begin(pixels, [0], ["s0"], net.device)
    gradient = made.look(net, pixels, goal, goal, state, ["s0"], False)[0]
    pixels.requires_grad_()
    (true,) = torch.autograd.grad(goal.loss(net.encode_image(pixels), state["rows"]).sum(), pixels)
    assert torch.cosine_similarity(gradient.flatten(), true.flatten(), 0) > 0.95


class ByNumpy(nn.Module):
    """A model that answers through another library, and counts what it is asked."""

    def __init__(self, inner, detach):
        super().__init__()
        self.inner, self.detach, self.logit_scale, self.asked = inner, detach, inner.logit_scale, 0

    def encode_image(self, x):
        self.asked += len(x)
        values = (x.detach() if self.detach else x).numpy()
        return torch.from_numpy(self.inner.encode_image(torch.from_numpy(values)).numpy())


@pytest.mark.parametrize("name", ["nes", "spsa", "square"])
def test_a_model_without_gradients_is_attacked_by_answers_and_they_are_counted(net, images, name):
    asks = handle(ByNumpy(net.net, detach=False))
    batch, made = batch_of(asks, images), attack(name, 0.1, steps=8, queries=20)
    asks.net.asked = 0
    pixels, asked = made.change(batch), asks.net.asked
    facts = made.facts(batch, HEAD.see(asks, pixels))
    assert asked == facts["passes"].sum() < len(images) * (9 + 8 * 40 * (name != "square"))  # who errs is asked no more
    fooled, answers = facts["fooled"], HEAD.see(net, pixels).predictions
    assert fooled.any() and (answers[fooled] != batch.labels[fooled]).all()


@pytest.mark.parametrize("detach", [True, False])
def test_a_white_box_attack_without_gradients_says_so(net, images, detach):
    asks = handle(ByNumpy(net.net, detach))
    with pytest.raises(ValueError, match="tiny gives no gradient of its answers, allowed are nes, spsa and square"):
        attack("bim", 0.05).change(batch_of(asks, images))


def test_rows_do_not_depend_on_the_company(net):
    images, order = world(6), np.array([3, 1, 5, 0, 2, 4])
    other = Pixels([images.sample_ids[k] for k in order], images.labels[order], images.pixels[order])
    shown = [attack(name, 0.02, steps=3, queries=2, draws=2) for name in ATTACKS] + [random_noise(0.02, 2)]
    both = [rows_of(net, i, shown, batch_size=size) for i, size in ((images, 64), (other, 3))]
    one, two = (r.sort_values(["condition", "draw", "sample_id"]).reset_index(drop=True) for r in both)
    pd.testing.assert_frame_equal(one, two, atol=1e-4)
    starts = one[one.condition == "pgd"].pivot(index="sample_id", columns="draw", values="rms")
    assert (starts[0] != starts[1]).mean() > 0.5


def test_a_transfer_attack_follows_the_substitute_all_the_way(net, images):
    other = handle(Answers(directions(seed=2), 3.0))
    made = attack("bim", 0.02, steps=6, substitute=(other, HEAD), called="transfer_bim")
    rows = rows_of(net, images, [made])
    alone = attack("bim", 0.02, steps=6, substitute=(other, HEAD)).change(batch_of(other, images))
    assert (rows.steps == 6).all() and "fooled" not in rows and rows.linf.min() > 0
    assert torch.equal(alone, made.change(batch_of(net, images)))


def test_apgd_looks_at_its_progress_when_autoattack_does():
    assert _attacks._checkpoints(100)[0].nonzero()[:, 0].tolist() == [22, 41, 57, 70, 80, 87, 93, 99]


@pytest.mark.parametrize(
    ("name", "eps", "options", "message"),
    [
        ("pdg", 0.1, {}, "attack is 'pdg', allowed are 'fgsm', 'bim', 'mim', 'dim', 'pgd'"),
        ("bim", -0.1, {}, "eps is -0.1, allowed is 0 to 1"),
        ("bim", 8.0, {}, "eps is 8.0, allowed is 0 to 1"),
        ("bim", 0.1, {"loss": "ce"}, "loss is 'ce', allowed are 'cross_entropy', 'margin', 'dlr'"),
        ("bim", 0.1, {"temperature": 0}, "temperature is 0, allowed is above 0"),
        ("square", 0.1, {"norm": "l2"}, "norm is l2, allowed is 'linf'"),
        ("bim", 0.1, {"space": "grey"}, "space is 'grey', allowed are 'pixel', 'normalised'"),
    ],
)
def test_bad_input_gets_one_clear_sentence(name, eps, options, message):
    with pytest.raises(ValueError, match=message):
        attack(name, eps, **options)


def test_what_does_not_fit_the_victim_is_named(net, images):
    three, larger = Head(torch.eye(5)[:3], NAMES[:3]), handle(Answers(directions(), 3.0), image_size=16, name="larger")
    with pytest.raises(ValueError, match="dlr compares four logits, tiny has 3 classes"):
        attack("apgd_dlr", 0.1).change(batch_of(net, world(6), three))
    with pytest.raises(ValueError, match="The substitute larger takes 16 pixels, allowed are the 8 of tiny"):
        attack("bim", 0.1, substitute=(larger, HEAD)).change(batch_of(net, images))
    with pytest.raises(ValueError, match="The substitute tiny has other classes than tiny"):
        attack("bim", 0.1, substitute=(net, three)).change(batch_of(net, images))
    edge = lambda x: (x[:, :1, 0, 0] - images.pixels[2, 0, 0, 0]).abs().sqrt()  # noqa: E731
    net.net.encode_image = lambda x: x.flatten(1) @ net.net.directions.T + edge(x)
    batch = batch_of(net, images)
    with pytest.raises(FloatingPointError, match="The gradient of pair s2 is not finite at step 0"):
        attack("fgsm", 0.05).change(replace(batch, labels=batch.clean.predictions))


# read-outs


def test_read_outs_are_those_of_a_table_worked_by_hand():
    table = {0: [1, 1, 1, -1], 2: [1, -1, 1, -1], 4: [-1, 1, 1, -1], 8: [-1, 1, 1, -1]}
    rows = pd.DataFrame([(f"s{i}", float(eps), m) for eps, row in table.items() for i, m in enumerate(row)])
    rows = rows.set_axis(["sample_id", "severity", "margin"], axis=1).assign(draw=0, linf=lambda r: r.severity)
    rows["condition"] = np.where(rows.severity > 0, "bim", "original")
    assert scores.smallest_change(rows).tolist() == [4, 2, 255, 0]
    assert scores.robustness_curve(rows, [0, 2, 4, 8]).value.tolist() == [0.75, 0.5, 0.25, 0.25]
    assert scores.bisected(*scores.by_radius(rows)).tolist() == [4, 255, 255, 0]
    assert scores.median_radius(rows).value == 129.5 and scores.not_monotone(rows).value == 0.25
    draws = pd.concat([rows, rows.assign(draw=1, margin=1.0)])
    assert scores.robust_accuracy(draws[draws.severity == 2]).value == 0.5
    deep = rows[rows.condition == "bim"].assign(condition="deepfool", severity=255.0, margin=-1.0)
    assert (adversarial_attacks.in_ball([deep], 3).margin >= 0).tolist() == [False] * 4 + [True] * 8


# alarms


class Defended(Answers):
    """One way each to make attacks fail without making anything robust."""

    def __init__(self, way):
        super().__init__(directions(), 3.0)
        self.way, self.random = way, torch.Generator().manual_seed(0)

    def encode_image(self, x):
        if self.way == "quantised input":
            x = (16 * x).round() / 16
        if self.way == "random resize and noise":
            side = int(torch.randint(6, 9, (), generator=self.random))
            x = F.pad(F.interpolate(x, side), [0, 8 - side] * 2)
            x = x + 0.15 * torch.randn(x.shape, generator=self.random)
        logits = super().encode_image(x)
        if self.way == "saturated scale":
            return 1e3 * logits
        if self.way == "rounding layer":
            return (4 * logits).round() / 4
        if self.way == "abstaining detector":  # what is rougher than the data gets no answer
            rough = (x - 0.5).flatten(1).square().mean(1) > 0.0015
            return logits * ~rough[:, None]
        return logits


MASKED = {
    "saturated scale": "gradients vanish",
    "quantised input": "gradients vanish",
    "random resize and noise": "answers to the same pixels differ",
    "rounding layer": "gradients vanish",
    "abstaining detector": "unbounded attack fails",
}


def alarms_of(way: str, amplitude: float = 0.03) -> pd.DataFrame:
    net = handle(Defended(way))
    shown = adversarial_attacks.ladder([4, 8, 16], steps=10, answers=40, targets=1)
    return scores.alarms(rows_of(net, world(amplitude=amplitude), shown)).set_index("alarm")


@pytest.mark.parametrize("way", MASKED)
def test_a_defence_that_masks_raises_its_alarm(way):
    table = alarms_of(way)
    assert table.raised[MASKED[way]], table[["value", "low", "raised"]]


@pytest.mark.parametrize("amplitude", [0.03, 0.2])
def test_a_plain_and_a_robust_model_raise_none(amplitude):
    table = alarms_of("none", amplitude)
    assert not table.raised.any() and table.value.notna().all(), table[["value", "low", "raised"]]
