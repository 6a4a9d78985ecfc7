"""Token grids and images whose energies and spectra are known in closed form."""

import numpy as np
import pytest

from zsr_utils import scores


A = np.array([1.0, -2.0, 0.5])
B = np.array([0.25, 1.0, 3.0])


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def wave(size, rows, columns, shift=0.0):
    """A plane wave of that many periods down and across."""
    i, j = np.indices((size, size)) / size
    return np.cos(2 * np.pi * (rows * i + columns * j + shift))


def grid(pattern, feature):
    return (pattern[..., None] * feature)[None]


def test_a_constant_grid_has_no_energy():
    tokens = np.broadcast_to(A, (2, 5, 4, 3))
    assert scores.dirichlet_energy(tokens).tolist() == [0, 0]
    assert scores.mean_square_norm(tokens).tolist() == [A @ A] * 2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_checkerboard_has_four_times_the_square_of_its_token(dtype):
    tokens = grid((-1.0) ** np.indices((7, 4)).sum(0), A).astype(dtype)
    assert scores.dirichlet_energy(tokens).tolist() == [4 * A @ A]
    assert scores.mean_square_norm(tokens).tolist() == [A @ A]


@pytest.mark.parametrize(("h", "w"), [(4, 4), (3, 6), (1, 5)])
def test_a_ramp_has_the_energy_of_its_two_slopes(h, w):
    i, j = np.indices((h, w))
    energy = scores.dirichlet_energy((i[..., None] * A + j[..., None] * B)[None])
    across, down = h * (w - 1), (h - 1) * w
    assert energy[0] == pytest.approx((across * B @ B + down * A @ A) / (across + down), rel=1e-14)


def test_only_edges_with_both_ends_kept_count(rng):
    tokens = rng.normal(size=(4, 5, 5, 3))
    keep = np.zeros((4, 5, 5), dtype=bool)
    keep[0, 1:4, 2:5] = True  # a block
    keep[1] = np.indices((5, 5)).sum(0) % 2  # no two neighbours
    keep[3, 2, 1:3] = True  # one edge
    tokens[3, 2, 1], tokens[3, 2, 2] = A, B
    energy = scores.dirichlet_energy(tokens, keep)
    assert energy[0] == pytest.approx(scores.dirichlet_energy(tokens[:1, 1:4, 2:5])[0], rel=1e-14)
    assert np.isnan(energy).tolist() == [False, True, True, False]
    assert energy[3] == pytest.approx((A - B) @ (A - B), rel=1e-14)
    size = scores.mean_square_norm(tokens, keep)
    assert size[3] == pytest.approx((A @ A + B @ B) / 2, rel=1e-14)
    assert np.isnan(size).tolist() == [False, False, True, False]


def test_a_single_token_has_no_edge():
    assert np.isnan(scores.dirichlet_energy(np.ones((1, 1, 1, 3)))).all()


def test_bands_are_rings_of_equal_width_up_to_the_corner():
    bands = scores.band_of(8, 8, 8)
    # radius of (i, j) is hypot(i, j) / hypot(4, 4); a ring has 1/8 of it, 0.707 cycles
    expected = np.floor(8 * np.hypot(*np.indices((5, 5))) / np.hypot(4, 4) + 1e-6).clip(max=7)
    assert bands[:5, :5].tolist() == expected.tolist()
    assert np.array_equal(bands, bands.T)
    assert np.array_equal(bands[1:], bands[:0:-1]) and np.array_equal(bands[:, 1:], bands[:, :0:-1])
    assert np.array_equal(np.unique(scores.band_of(7, 7, 8)), np.arange(8))
    assert scores.band_of(7, 7, 3)[1, 1] == 1  # on the edge at a third: the band above
    assert scores.band_of(1, 1, 4).tolist() == [[0]]


@pytest.mark.parametrize("size", [7, 8])
def test_no_change_is_fully_coherent_and_has_no_shares(rng, size):
    tokens = rng.normal(size=(3, size, size, 16)).astype(np.float32)
    shares, coherence = scores.change_spectrum(tokens, tokens.copy())
    assert np.isnan(shares).all() and shares.shape == (3, 8)
    assert abs(coherence - 1).max() < 1e-12


def test_a_band_without_energy_has_no_coherence(rng):
    flat = np.full((1, 7, 7, 4), 0.3)
    _, coherence = scores.change_spectrum(flat, flat)
    assert coherence[0, 0] == pytest.approx(1, abs=1e-12) and np.isnan(coherence[0, 1:]).all()
    shares, coherence = scores.change_spectrum(flat, rng.normal(size=flat.shape))
    assert np.isnan(coherence[0, 1:]).all() and (shares[0] > 0).all()
    shares, coherence = scores.change_spectrum(*rng.normal(size=(2, 1, 4, 4, 2)), bands=40)
    empty = np.bincount(scores.band_of(4, 4, 40).ravel(), minlength=40) == 0
    assert np.array_equal(np.isnan(coherence[0]), empty) and (shares[0, empty] == 0).all() and empty.any()


@pytest.mark.parametrize("size", [5, 8])
@pytest.mark.parametrize("bands", [1, 3, 8])
def test_shares_and_coherence_are_those_of_the_whole_transform(rng, size, bands):
    clean, perturbed = rng.normal(size=(2, 2, size, size, 3))
    shares, coherence = scores.change_spectrum(clean, perturbed, bands)
    x, y = (np.fft.fft2(z, axes=(1, 2)) for z in (clean, perturbed))
    band = scores.band_of(size, size, bands)
    energy = abs(y - x) ** 2
    for b in np.unique(band):
        inside = band == b
        cross = abs((x * y.conj())[:, inside].sum((1, 2))) ** 2
        own = [(abs(z) ** 2)[:, inside].sum((1, 2)) for z in (x, y)]
        np.testing.assert_allclose(coherence[:, b], cross / (own[0] * own[1]), rtol=1e-10)
        np.testing.assert_allclose(shares[:, b], energy[:, inside].sum((1, 2)) / energy.sum((1, 2, 3)), rtol=1e-10)
    np.testing.assert_allclose(shares.sum(1), 1, rtol=1e-12)


@pytest.mark.parametrize(("rows", "columns"), [(0, 1), (-2, 1), (3, 0), (3, 3), (4, 4), (0, 0)])
def test_a_wave_changes_the_one_band_it_is_in(rng, rows, columns):
    clean = rng.normal(size=(1, 8, 8, 3))
    shares, _ = scores.change_spectrum(clean, clean + grid(wave(8, rows, columns, 0.1), A))
    expected = np.zeros(8)
    expected[scores.band_of(8, 8, 8)[rows, columns]] = 1
    np.testing.assert_allclose(shares[0], expected, atol=1e-12)


def test_two_waves_share_by_their_squared_amplitudes():
    clean = np.zeros((1, 8, 8, 3))
    shares, _ = scores.change_spectrum(clean, clean + grid(wave(8, 0, 1), A) + grid(2 * wave(8, 3, 2), A))
    low, high = scores.band_of(8, 8, 8)[[0, 3], [1, 2]]
    assert (shares[0, low], shares[0, high]) == pytest.approx((0.2, 0.8), abs=1e-12)


def test_coherence_of_a_pattern_that_loses_a_part_turns_or_moves():
    first, second = grid(wave(8, 0, 1), A), grid(wave(8, 1, 0), A)  # of one band
    band = scores.band_of(8, 8, 8)[0, 1]
    cases = [
        (-3 * (first + second), 1),  # only multiplied
        (first, 1 / 2),  # one of two waves is left
        (first - second, 0),
        (np.roll(first + second, (1, 1), (1, 2)), np.cos(np.pi / 4) ** 2),  # an eighth of a period
    ]
    for perturbed, expected in cases:
        _, coherence = scores.change_spectrum(first + second, perturbed)
        assert coherence[0, band] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("h", "w"), [(32, 32), (15, 20)])
def test_power_change_is_that_of_the_centred_transform(rng, h, w):
    clean, perturbed = rng.random((2, 4, 3, h, w)).astype(np.float32)
    difference, relative = scores.power_change(clean, perturbed)
    y, x = np.indices((h, w))
    radius = np.hypot(y - h // 2, x - w // 2)
    edges = np.geomspace(1, radius.max() + 1, 4) - 1
    for b in range(3):
        inside = (radius >= edges[b]) & ((radius < edges[b + 1]) | (b == 2))
        before, after = (
            (abs(np.fft.fftshift(np.fft.fft2(z.astype(float)), axes=(2, 3))) ** 2)[..., inside].mean((1, 2))
            for z in (clean, perturbed)
        )
        np.testing.assert_allclose(difference[:, b], after - before, rtol=1e-8, atol=1e-8)
        np.testing.assert_allclose(relative[:, b], (after - before) / (before + 1e-8), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("shift", [(0, 3), (5, 0), (-7, 11)])
def test_a_cyclic_translation_leaves_the_power_where_it_is(rng, shift):
    clean = rng.random((2, 3, 16, 16)) ** 2
    difference, relative = scores.power_change(clean, np.roll(clean, shift, (2, 3)), bands=5)
    assert abs(relative).max() < 1e-12
    assert abs(difference).max() < 1e-12 * 256**2  # of the largest power an image can have


def test_a_wave_adds_power_to_the_one_band_it_is_in():
    clean = np.full((1, 3, 16, 16), 0.5)
    # edges geomspace(1, 1 + sqrt(128), 4) - 1 = 0, 1.31, 4.33, 11.31 cycles
    for periods, band in ((1, 0), (3, 1), (6, 2)):
        perturbed = clean.copy()
        perturbed[0, 1] += 0.2 * wave(16, 0, periods)  # one channel of three
        difference, _ = scores.power_change(clean, perturbed)
        squares = np.fft.fftfreq(16, 1 / 16)[:, None] ** 2 + np.fft.fftfreq(16, 1 / 16) ** 2
        counts = [(squares < 1.3**2).sum(), ((squares > 1.3**2) & (squares < 4.3**2)).sum(), (squares > 4.3**2).sum()]
        expected = np.zeros(3)
        expected[band] = 2 * (0.1 * 256) ** 2 / 3 / counts[band]
        np.testing.assert_allclose(difference[0], expected, atol=1e-9)


def test_a_pattern_is_in_one_band_along_both_sides_of_a_grid_that_is_not_square():
    clean = np.random.default_rng(4).normal(size=(1, 4, 8, 3))
    along, down = np.zeros_like(clean), np.zeros_like(clean)
    along[:, :, ::2], down[:, ::2] = 1, 1  # every second token: four times along the grid, twice down
    along, down = (scores.change_spectrum(clean, clean + change - 0.5, 4)[0][0] for change in (along, down))
    assert along.argmax() == 2 and along.max() == pytest.approx(1)
    np.testing.assert_allclose(along, down, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: scores.band_of(8, 0, 8), "The token grid is 8 x 0, allowed is a token or more on each side"),
        (lambda: scores.band_of(8, 8, 0), "bands is 0, allowed is 1 or more"),
        (lambda: scores.power_change(*np.ones((2, 1, 3, 8, 8)), bands=0), "bands is 0, allowed is 1 or more"),
        (
            lambda: scores.power_change(np.ones((1, 3, 8, 8)), np.ones((1, 3, 8, 9))),
            r"perturbed has shape \(1, 3, 8, 9\), allowed is \(1, 3, 8, 8\), that of the clean ones",
        ),
        (
            lambda: scores.change_spectrum(np.ones((1, 8, 8, 3)), np.ones((2, 8, 8, 3))),
            r"perturbed has shape \(2, 8, 8, 3\), allowed is \(1, 8, 8, 3\)",
        ),
        (lambda: scores.change_spectrum(*np.ones((2, 8, 8, 3))), r"clean has shape \(8, 8, 3\), allowed is four axes"),
        (lambda: scores.dirichlet_energy(np.ones((8, 8, 3))), r"tokens have shape \(8, 8, 3\), allowed is \(N, H, W,"),
        (
            lambda: scores.mean_square_norm(np.ones((2, 8, 8, 3)), np.ones((2, 8), dtype=bool)),
            r"keep has shape \(2, 8\), allowed is \(2, 8, 8\)",
        ),
    ],
)
def test_bad_grids_get_one_clear_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()
