"""Geometry against closed forms, masks against what is really seen, overlays that share a box."""

import math
import pickle
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageOps

from zsr_utils.conditions import PAPER, VARIANTS, families


WORDS = ("dog", "guitar", "house")
EVERY = families([*PAPER, *VARIANTS])
NAMES = [f"{p.family} {p.instance}" for p in EVERY]


def picture(width=96, height=64, seed=0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def plain(width, height, colour=(40, 90, 160)) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def pixels(image) -> np.ndarray:
    return np.asarray(image)


def share(mask) -> float:
    return float((pixels(mask) == 255).mean())


def box_of(view) -> tuple[int, int, int, int]:
    return ImageOps.invert(view.content).getbbox()


def one(family, instance=0, **options):
    return families([family], **options)[instance]


def test_the_paper_has_thirty_instances_of_eight_families():
    found = families()
    assert Counter(p.family for p in found) == dict(zip(PAPER, (8, 8, 1, 2, 2, 3, 3, 3)))
    assert tuple(dict.fromkeys(p.family for p in found)) == PAPER and len(found) == 30
    for family in (*PAPER, *VARIANTS):
        of = families([family])
        assert len({p.instance for p in of}) == len(of) and [p.number for p in of] == list(range(len(of)))


def test_families_come_in_the_order_asked_for():
    assert [p.family for p in families(["scale", "scale_pad_mean", "rotation"])] == (
        ["scale", "scale_pad_mean"] + ["rotation"] * 2
    )


@pytest.mark.parametrize("perturbation", EVERY, ids=NAMES)
@pytest.mark.parametrize("size", [(96, 64), (61, 83)])
def test_masks_have_the_sizes_they_say_and_are_black_and_white(perturbation, size):
    image = picture(*size)
    before = pixels(image).copy()
    view = perturbation(image, sample_id="a", words=WORDS)
    assert view.image.mode == "RGB" and view.content.mode == view.kept.mode == "L"
    assert view.content.size == view.image.size and view.kept.size == size
    assert perturbation.keeps_size == (view.image.size == size)
    assert set(np.unique(view.content)) | set(np.unique(view.kept)) <= {0, 255}
    assert (pixels(image) == before).all() and view.image is not image
    if perturbation.family in (
        "text_semantic",
        "text_random",
        "text_empty",
        "scale_restored",
    ):  # every pixel that is kept stays where it was
        assert (pixels(view.content) == pixels(view.kept)).all()


@pytest.mark.parametrize("perturbation", EVERY, ids=NAMES)
@pytest.mark.parametrize("size", [(131, 90), (71, 127), (69, 125)])  # a rotated mask alone holds fill in the last two
def test_content_holds_no_fill_and_everything_else_is_fill(perturbation, size):
    colour = (40, 90, 160)
    view = perturbation(plain(*size, colour), words=WORDS)
    original = (pixels(view.image) == colour).all(2)
    content = pixels(view.content) == 255
    assert original[content].all()
    if "mean" not in perturbation.family:  # the mean of a plain image is its colour
        # a rotated mask leaves out the outermost pixel along the border of the picture
        border = 2 * sum(size) * math.sqrt(2) if perturbation.family == "rotation" else 0
        assert (original & ~content).sum() <= border


@pytest.mark.parametrize("perturbation", EVERY, ids=NAMES)
def test_what_is_not_kept_is_not_seen(perturbation):
    grey = np.full((90, 131, 3), 100, np.uint8)
    kept = pixels(perturbation(Image.fromarray(grey), words=WORDS).kept) == 255
    grey[~kept] = 250
    seen = pixels(perturbation(Image.fromarray(grey), words=WORDS).image)[..., 0].astype(int)
    content = pixels(perturbation(Image.fromarray(grey), words=WORDS).content) == 255
    if perturbation.family == "rotation_content":  # interpolation looks a pixel or two across the cut
        seen, content = seen[3:-3, 3:-3], content[3:-3, 3:-3]
    assert content.any() and (seen[content] == 100).all()


@pytest.mark.parametrize("perturbation", families(["translation"]), ids=lambda p: p.instance)
def test_a_cyclic_translation_keeps_the_power_spectrum_and_rolls_back(perturbation):
    image = picture()
    view = perturbation(image)
    # relative to the shorter side of 64 px, a 64th is a pixel
    shift = int(perturbation.instance.removesuffix("/64"))
    assert (np.roll(pixels(view.image), -shift, axis=1) == pixels(image)).all()
    before, after = (np.abs(np.fft.fft2(pixels(i).astype(float), axes=(0, 1))) ** 2 for i in (image, view.image))
    np.testing.assert_allclose(after, before, rtol=1e-9, atol=1e-3)
    assert not (pixels(view.image) == pixels(image)).all()
    assert share(view.content) == share(view.kept) == 1


def test_a_positive_translation_moves_to_the_right():
    image = plain(64, 64, (0, 0, 0))
    image.putpixel((10, 5), (255, 255, 255))
    assert one("translation", 7)(image).image.getpixel((14, 5)) == (255, 255, 255)


@pytest.mark.parametrize("family", ["translation", "pad_crop"])
def test_relative_steps_mean_the_same_at_every_size(family):
    def fractions(size):
        dot = plain(size, size, (0, 0, 0))
        dot.paste((255, 255, 255), (size // 2, 0, size // 2 + 1, size))
        moved = [p(dot).image for p in families([family])]
        if family == "translation":
            return [(pixels(i)[0, :, 0].argmax() - size // 2) / size for i in moved]
        return [(i.width - size) / 2 / size for i in moved]

    expected = [step / 64 for step in (-4, -3, -2, -1, 1, 2, 3, 4)]
    assert fractions(64) == fractions(256) == fractions(1024) == expected
    assert [p.instance for p in families([family])] == [f"{step:+d}/64" for step in (-4, -3, -2, -1, 1, 2, 3, 4)]


def test_relative_steps_are_of_the_shorter_side_rounded_and_at_least_one_pixel():
    widths = lambda *size: [p(plain(*size)).image.width - size[0] for p in families(["pad_crop"])[4:]]  # noqa: E731
    assert widths(300, 128) == widths(128, 300) == [4, 8, 12, 16]
    assert widths(20, 20) == [2, 2, 2, 2]  # 0.3, 0.6, 0.9, 1.25 px
    assert widths(100, 100) == [4, 6, 10, 12]  # 1.6, 3.1, 4.7, 6.25 px


@pytest.mark.parametrize("size", [40, 500])
def test_pixel_steps_are_the_papers_whatever_the_size(size):
    steps = [-16, -12, -8, -4, 4, 8, 12, 16]
    image = picture(size, size)
    moved = families(["translation", "pad_crop"], units="pixels")
    assert [p.instance for p in moved] == [f"{n:+d} px" for n in steps] * 2
    for n, p in zip(steps, moved):
        assert (pixels(p(image).image) == np.roll(pixels(image), n, axis=1)).all()
    assert [p(image).image.size for p in moved[8:]] == [(size + 2 * n, size + 2 * n) for n in steps]


def test_at_256_pixels_both_units_are_the_same():
    image = picture(256, 300)
    for a, b in zip(*(families(["translation", "pad_crop"], units=u) for u in ("relative", "pixels"))):
        assert (pixels(a(image).image) == pixels(b(image).image)).all()


@pytest.mark.parametrize("family", ["pad_crop", "pad_crop_mean"])
def test_padding_then_a_centre_crop_gives_back_the_original(family):
    image = picture()
    for n, p in enumerate(families([family])[4:], start=1):
        view = p(image)
        assert view.image.size == (96 + 2 * n, 64 + 2 * n)
        assert (pixels(view.image)[n:-n, n:-n] == pixels(image)).all()
        assert view.content.getbbox() == (n, n, 96 + n, 64 + n) and share(view.kept) == 1
        assert share(view.content) == 96 * 64 / ((96 + 2 * n) * (64 + 2 * n))
        colour = (0, 0, 0) if family == "pad_crop" else pixels(image).mean((0, 1)).round()
        assert (pixels(view.image)[pixels(view.content) == 0] == colour).all()


def test_a_crop_keeps_exactly_the_middle():
    image = picture()
    for n, p in zip((4, 3, 2, 1), families(["pad_crop"])):
        view = p(image)
        assert (pixels(view.image) == pixels(image)[n:-n, n:-n]).all()
        assert share(view.content) == 1 and view.kept.getbbox() == (n, n, 96 - n, 64 - n)
        assert share(view.kept) == (96 - 2 * n) * (64 - 2 * n) / (96 * 64)


def test_scale_gives_the_smaller_image_and_its_variants_bring_it_back():
    image = picture(100, 60)
    small = image.resize((90, 54), Image.Resampling.BICUBIC)
    assert (pixels(one("scale")(image).image) == pixels(small)).all()
    restored = one("scale_restored")(image)
    assert restored.image.size == image.size and share(restored.content) == 1
    assert (pixels(restored.image) == pixels(small.resize((100, 60), Image.Resampling.BICUBIC))).all()
    colours = [(0, 0, 0), (255, 255, 255), pixels(image).mean((0, 1)).round()]
    for p, colour in zip(families(["scale_pad", "scale_pad_mean"]), colours):
        view = p(image)
        assert view.content.getbbox() == (5, 3, 95, 57) and share(view.content) == 0.81 and share(view.kept) == 1
        assert (pixels(view.image)[3:57, 5:95] == pixels(small)).all()
        assert (pixels(view.image)[pixels(view.content) == 0] == colour).all()


@pytest.mark.parametrize(("instance", "corner"), [(0, "right"), (1, "left")])
def test_a_rotated_square_keeps_its_area_and_turns_the_way_it_says(instance, corner):
    image = plain(400, 400)
    image.paste((255, 0, 0), (180, 0, 220, 40))  # middle of the upper edge
    view = one("rotation", instance)(image)
    side = 400 * (math.cos(math.pi / 6) + math.sin(math.pi / 6))
    assert view.image.size == pytest.approx((side, side), abs=2)
    assert (pixels(view.content) == 255).sum() == pytest.approx(400**2, rel=0.02)
    assert share(view.kept) == 1
    assert (pixels(view.image)[0, 0] == 255).all() and view.content.getpixel((0, 0)) == 0
    red = (pixels(view.image) == (255, 0, 0)).all(2).nonzero()[1].mean()
    assert red - view.image.width / 2 == pytest.approx(
        180 * math.sin(math.pi / 6) * (1 if instance == 0 else -1), abs=2
    )


def test_fill_of_the_mean_colour_leaves_the_rotated_picture_as_it_is():
    image = picture(90, 70)
    white, mean = (one(f)(image) for f in ("rotation", "rotation_mean"))
    content = pixels(white.content) == 255
    assert (content == (pixels(mean.content) == 255)).all()
    assert (pixels(white.image)[content] == pixels(mean.image)[content]).all()
    assert (pixels(mean.image)[0, 0] == pixels(image).mean((0, 1)).round()).all()


@pytest.mark.parametrize("size", [(64, 64), (300, 200), (51, 140), (1, 1), (3, 50)])
@pytest.mark.parametrize("instance", [0, 1])
def test_rotated_content_has_no_fill(size, instance):
    view = one("rotation_content", instance)(plain(*size, (7, 8, 9)))
    assert (pixels(view.image) == (7, 8, 9)).all() and share(view.content) == 1


@pytest.mark.parametrize("size", [(400, 400), (600, 400), (400, 600)])
def test_rotated_content_is_the_largest_rectangle_of_the_aspect_ratio(size):
    view = one("rotation_content")(plain(*size))
    cos, sin = math.cos(math.pi / 6), math.sin(math.pi / 6)
    long, short = max(size), min(size)
    shrink = 1 / (cos + sin * long / short)
    assert view.image.size == tuple(int(shrink * side) for side in size)
    cut = view.image.width * view.image.height
    assert (pixels(view.kept) == 255).sum() == pytest.approx(cut, rel=0.01)
    turned = one("rotation")(plain(*size))
    larger = [round(1.03 * side) for side in view.image.size]  # no longer all content
    middle = [(outer - inner) // 2 for inner, outer in zip(larger, turned.image.size)]
    part = turned.content.crop((*middle, middle[0] + larger[0], middle[1] + larger[1]))
    assert share(part) < 1


@pytest.mark.parametrize("instance", [0, 1])
def test_rotated_content_is_the_middle_of_the_rotated_image(instance):
    image = picture(64, 64).resize((260, 260), Image.Resampling.BICUBIC)
    cut, whole = (one(f, instance)(image).image for f in ("rotation_content", "rotation"))
    left = (whole.width - cut.width) / 2
    assert left % 1 == 0  # so both have the same pixel grid
    middle = whole.crop((int(left), int(left), int(left) + cut.width, int(left) + cut.height))
    assert abs(pixels(middle).astype(int) - pixels(cut)).max() <= 1


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("units", ["relative", "pixels"])
def test_the_three_overlays_share_a_box_and_change_nothing_else(number, units):
    image = picture(160, 128)
    semantic, random, empty = (
        one(f"text_{kind}", number, units=units)(image, sample_id="a", words=WORDS)
        for kind in ("semantic", "random", "empty")
    )
    box = box_of(semantic)
    assert box == box_of(random) == box_of(empty)
    middle = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    assert middle == pytest.approx((80, 64), abs=0.5)
    covered = np.zeros((128, 160), bool)
    covered[box[1] : box[3], box[0] : box[2]] = True
    for view in (semantic, random, empty):
        assert ((pixels(view.content) == 0) == covered).all() and ((pixels(view.kept) == 0) == covered).all()
        assert (pixels(view.image)[~covered] == pixels(image)[~covered]).all()
    assert (pixels(empty.image)[covered] == 255).all()
    for view in (semantic, random):
        ink = pixels(view.image)[covered]
        assert (ink[:, 0] == 255).all() and (ink[:, 1] == ink[:, 2]).all() and ink[:, 1].min() < 60
    assert (pixels(semantic.image) != pixels(random.image)).any()


@pytest.mark.parametrize(("height", "font"), [(200, 14), (640, 20)])
def test_pixel_units_take_the_papers_font_size_and_padding(height, font):
    view = one("text_semantic", units="pixels", phrase="Answer is {}")(plain(400, height, (0, 0, 0)), words=["dog"])
    box = box_of(view)
    ink = ImageOps.invert(view.image.crop(box).split()[1]).point(lambda v: 255 * (v > 60)).getbbox()
    around = ink[0], ink[1], box[2] - box[0] - ink[2], box[3] - box[1] - ink[3]
    # a letter's faint edge may be lighter than the threshold
    assert around[:2] + around[3:] == pytest.approx((4, 4, 4), abs=1)
    assert 4 <= around[2] <= 4 + 0.15 * font  # a text's width counts the room after its last letter
    # from the top of A to the bottom of g, 0.72 and 0.21 of the size in this font
    assert ink[3] - ink[1] == pytest.approx(0.93 * font, abs=1.5)


def test_relative_boxes_are_the_same_share_of_every_size():
    sides = {}
    for size in (64, 1024):
        left, top, right, bottom = box_of(one("text_empty")(plain(size, size), words=WORDS))
        sides[size] = (right - left) / size, (bottom - top) / size
    assert sides[64] == pytest.approx(sides[1024], abs=2 / 64)  # either edge falls on a whole pixel
    tall = box_of(one("text_empty", text_height=1 / 4)(plain(1024, 1024), words=WORDS))
    assert (tall[3] - tall[1]) / 1024 == pytest.approx(2 * sides[1024][1], abs=4 / 1024)


def test_the_word_is_the_one_of_the_instance_inside_the_phrase():
    image = plain(200, 100)
    second = one("text_semantic", 1, phrase="a {} {{")(image, words=["x", "cat"])
    direct = one("text_semantic", 0, phrase="{} {{")(image, words=["a cat"])
    assert (pixels(second.image) == pixels(direct.image)).all()
    assert box_of(second) != box_of(one("text_semantic", 0, phrase="a {} {{")(image, words=["x", "cat"]))


def test_random_text_follows_the_sample_and_the_instance_alone():
    image = plain(400, 100)

    def drawn(number=0, **arguments):
        # the same word at every position: the boxes are the same, only the text may differ
        arguments = {"sample_id": "a", "words": ["elephants"] * 3} | arguments
        return pixels(one("text_random", number)(image, **arguments).image).tobytes()

    assert drawn() == drawn()
    assert len({drawn(sample_id=f"{i}") for i in range(20)}) == 20
    assert len({drawn(number) for number in range(3)}) == 3


def test_random_text_is_no_wider_than_the_word():
    for seed in range(30):
        view = one("text_random")(plain(300, 160), sample_id=f"{seed}", words=["zebra"])
        left, top, right, bottom = box_of(view)
        ink = (pixels(view.image)[top:bottom, left:right, 1] < 255).any(0).nonzero()[0]
        assert ink[0] >= 5 - 1 and right - left - 1 - ink[-1] >= 5 - 1  # a quarter of 20 px, anti-aliased


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA", "CMYK", "LA"])
def test_every_mode_is_taken_as_rgb(mode):
    image = picture().convert(mode)
    for p in families():
        a, b = (p(i, sample_id="a", words=WORDS).image for i in (image, image.convert("RGB")))
        assert (pixels(a) == pixels(b)).all()


def test_perturbations_can_be_sent_to_other_processes():
    image = picture()
    for p in EVERY:
        again = pickle.loads(pickle.dumps(p))
        assert again == p
        assert (pixels(again(image, words=WORDS).image) == pixels(p(image, words=WORDS).image)).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"names": ["shear"]}, "perturbation family is 'shear', allowed are 'translation', .*'rotation_content'"),
        ({"units": "percent"}, "units is 'percent', allowed are 'relative', 'pixels'"),
        ({"phrase": "Answer"}, "phrase is 'Answer', allowed is a text with one '{}'"),
        ({"phrase": "{} {}"}, "phrase is '{} {}'"),
        ({"text_height": 0}, "text_height is 0, allowed is above 0 and at most 1"),
        ({"text_height": 1.5}, "text_height is 1.5"),
    ],
)
def test_bad_options_get_one_clear_sentence(options, words):
    with pytest.raises(ValueError, match=words) as error:
        families(**options)
    if "names" in options:
        assert all(f"'{name}'" in str(error.value) for name in (*PAPER, *VARIANTS))


@pytest.mark.parametrize(
    ("perturbation", "size", "arguments", "words"),
    [
        (
            one("pad_crop", units="pixels"),
            (80, 32),
            {},
            "crop is 16 px on every side, allowed is 15 at most .* 80 x 32",
        ),
        (one("pad_crop"), (2, 9), {}, "crop is 1 px on every side, allowed is 0 at most"),
        (one("translation", units="pixels"), (16, 40), {}, "translation is -16 px, allowed is less than .* 16 px"),
        (one("text_semantic", 2), (90, 90), {"words": WORDS[:2]}, "allowed for text_semantic 'word 3' are 3 or more"),
        (one("text_empty"), (90, 90), {}, r"words is \(\), allowed for text_empty 'word 1' are 1 or more"),
        (one("text_random"), (90, 90), {"words": "dog"}, "words is 'dog'"),
        (one("text_semantic"), (90, 90), {"words": ["crêpe"]}, "text is 'crêpe', allowed are printable ASCII"),
        (one("text_semantic"), (90, 90), {"words": [" "]}, "text is ' '"),
        (one("scale"), (0, 9), {}, "image has 0 x 9 px, allowed is 1 or more"),
    ],
)
def test_what_cannot_be_done_gets_one_clear_sentence(perturbation, size, arguments, words):
    with pytest.raises(ValueError, match=words):
        perturbation(plain(*size), **arguments)


@pytest.mark.parametrize("kind", ["semantic", "random", "empty"])
def test_letters_shrink_on_a_narrow_image_down_to_the_smallest_that_have_a_shape(kind):
    overlay = one(f"text_{kind}", phrase="this is a {}")
    wide, shrunk, least = (
        box_of(overlay(plain(width, 64), words=["hippopotamus"])) for width in (600, 80, 67)
    )  # the box is 85 px wide in letters of 8 px, 67 px in letters of 6 px
    widths = [right - left for left, _, right, _ in (wide, shrunk, least)]
    assert widths[0] > 80 >= widths[1] > widths[2] == 67
    with pytest.raises(
        ValueError, match=r"'this is a hippopotamus' needs a box of 67 x .* smallest letters.* 66 x 64\."
    ):
        overlay(plain(66, 64), words=["hippopotamus"])
    with pytest.raises(ValueError, match=r"needs a box of .* 600 x 5\."):
        overlay(plain(600, 5), words=["hippopotamus"])


def test_an_array_is_not_an_image():
    with pytest.raises(TypeError, match="image is of type ndarray, allowed is a PIL image"):
        one("scale")(np.zeros((8, 8, 3), np.uint8))


def test_a_crop_of_all_but_one_pixel_is_allowed():
    assert one("pad_crop", units="pixels")(plain(33, 33)).image.size == (1, 1)
