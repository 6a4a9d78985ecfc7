"""The corruptions and sequences: closed forms, and what the published parameters say."""

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_model, token_pictures
from torch.nn import functional as F

from zsr_utils.conditions import CORRUPTIONS, SEQUENCES, Batch, Head, Seen, corruptions, published_size, sequences
from zsr_utils.conditions._condition import generator
from zsr_utils.conditions._corruptions import CHANGES, PARAMETERS


STILL = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}  # nothing is drawn


def batch_of(pixels: torch.Tensor, seed: int = 0, names=None) -> Batch:
    n, names = len(pixels), names or [f"s{i}" for i in range(len(pixels))]
    seen = Seen(pixels, torch.zeros(n, 4), torch.zeros(n, 2))
    return Batch(tiny_model(), Head(torch.eye(4)[:2], ("a", "b")), names, torch.zeros(n), seen, seed=seed)


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    pictures = [np.asarray(picture)[3:67, 3:67] for _, picture, _ in token_pictures(4, 96)]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255


def shown(name: str, severity: int, pixels: torch.Tensor, **options) -> torch.Tensor:
    (condition,) = corruptions([name], [severity], **options)
    return condition.change(batch_of(pixels))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severity_0_is_the_image_and_5_changes_more_than_1(name, pixels):
    assert shown(name, 0, pixels) is pixels
    mild, strong = ((shown(name, s, pixels) - pixels).square().mean().sqrt() for s in (1, 5))
    assert strong > 0.05 and (mild < strong or name == "elastic_transform")  # which trades reach for roughness


@pytest.mark.parametrize("condition", [*corruptions(severities=[4]), *sequences()[20::31]], ids=lambda c: c.name)
def test_an_image_is_changed_alike_alone_and_in_a_batch_by_its_id_and_seed(condition, pixels):
    together, other = (condition.change(batch_of(pixels, seed)) for seed in (0, 1))
    assert together.shape == pixels.shape and together.min() >= 0 and together.max() <= 1
    alone = condition.change(batch_of(pixels[2:3], names=["s2"]))
    torch.testing.assert_close(alone, together[2:3], atol=1e-5, rtol=0)
    if condition.severity == 4:
        assert torch.allclose(together, other, atol=0.01) == (condition.name in STILL)


def test_noises_have_their_published_size():
    grey, large = torch.full((2, 3, 64, 64), 0.5), torch.full((1, 3, 224, 224), 0.5)
    assert (shown("gaussian_noise", 1, grey) - 0.5).std().item() == pytest.approx(0.04, rel=0.03)
    assert (shown("gaussian_noise", 1, large) - 0.5).std().item() == pytest.approx(0.08, rel=0.03)
    assert (shown("shot_noise", 3, grey) - 0.5).std().item() == pytest.approx((0.5 / 50) ** 0.5, rel=0.05)
    salt = shown("impulse_noise", 5, grey)
    assert [float((salt == v).float().mean()) for v in (0, 1)] == pytest.approx([0.07, 0.07], rel=0.1)
    assert published_size(119) == 64 and published_size(121) == 224


def test_closed_forms(pixels):
    means = pixels.mean((2, 3), keepdim=True)
    torch.testing.assert_close(shown("contrast", 5, pixels), means + 0.05 * (pixels - means))
    torch.testing.assert_close(shown("brightness", 2, pixels).amax(1), (pixels.amax(1) + 0.2).clamp(max=1))
    assert (shown("brightness", 5, torch.zeros(1, 3, 64, 64)) == 0.5).all()
    halves = pixels.unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(shown("pixelate", 5, pixels), halves)
    light = torch.full((1, 3, 64, 64), 0.25)
    for name in ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform", "jpeg_compression"):
        torch.testing.assert_close(shown(name, 5, light), light, atol=0.004, rtol=0)
    point = F.pad(torch.ones(1, 3, 1, 1), [32, 31, 32, 31])  # spread over the disk of radius 3
    disk = shown("defocus_blur", 5, point)[0, 0]
    assert int((disk > 1e-3).sum()) == 29 and disk.sum().item() == pytest.approx(1, abs=1e-5)


def test_glass_takes_every_pixel_from_its_neighbourhood():
    levels = torch.arange(64.0)[:, None].expand(1, 3, -1, 64)
    moved = 255 * CHANGES["glass_blur"](levels / 255, (1e-3, 1, 1), [generator("s", (0,))])
    torch.testing.assert_close(moved, moved.round(), atol=1e-3, rtol=0)
    assert 0.3 < (moved - levels).abs().mean() < 2 and torch.equal(moved[:, 0], moved[:, 2])


@pytest.mark.parametrize(("make", "sentence"), [
    (lambda: corruptions(["rain"]), "corruption is 'rain', allowed are 'gaussian_noise', .*'jpeg_compression'"),
    (lambda: corruptions(["fog"], [6]), "severity of fog is 6, allowed are 0, 1, 2, 3, 4, 5"),
    (lambda: sequences(["shear"]), "sequence is 'shear', allowed are"),
    (lambda: corruptions(frost="/nowhere"), "frost is '/nowhere', allowed is a folder with pictures of frost"),
])  # fmt: skip
def test_what_is_wrong_is_named_beside_what_is_allowed(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_frost_takes_the_pictures_of_a_folder(tmp_path, pixels):
    Image.new("RGB", (80, 300), (255, 0, 0)).save(tmp_path / "frost1.png")
    own, ice = PARAMETERS["frost"][64][2]
    red = shown("frost", 3, pixels, frost=tmp_path)
    torch.testing.assert_close(red, (own * pixels + ice * torch.eye(3)[0, :, None, None]).clamp(0, 1))


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_sequence_passes_through_the_image_and_moves_on(name, pixels):
    frames = sequences([name])
    assert [(f.name, f.severity) for f in frames] == [(f"{name}_sequence", k) for k in range(1, 32)]
    clean = {"gaussian_noise": 1, "shot_noise": 1, "zoom_blur": 1, "scale": 25}.get(name, 16)
    start, one, other = (frames[k - 1].change(batch_of(pixels)) for k in (clean, 20, 21))
    assert not torch.allclose(one, other, atol=0.01)
    if name not in ("motion_blur", "snow"):  # which are blurred and white in every frame
        torch.testing.assert_close(start, pixels, atol=1e-4, rtol=0)
    if name == "translate":  # frame 21 is 5 px to the right
        torch.testing.assert_close(other[..., 5:], pixels[..., :-5], atol=1e-4, rtol=0)
