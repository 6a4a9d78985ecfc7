"""Token grids in space and frequency: roughness, and at which scales a change lives."""

import numpy as np
from jaxtyping import Bool, Float, Int


ROUNDING = 1e-24  # of a grid's energy: a band with less holds nothing but the rounding of the transform


def dirichlet_energy(
    tokens: Float[np.ndarray, "n h w c"], keep: Bool[np.ndarray, "n h w"] | None = None
) -> Float[np.ndarray, "n"]:
    """Roughness of token grids: mean of ||z_i - z_j||^2 over 4-neighbour edges.

    A flat area lowers it, whatever the model makes of the rest: `keep` leaves out the tokens of a border or a box (an
    edge counts if both of its ends do), and dividing by `mean_square_norm` takes out the length of the tokens.

    Examples:
        >>> board = np.where(np.indices((4, 4)).sum(0) % 2, 1.0, -1.0)
        >>> dirichlet_energy(board[None, :, :, None]).tolist()
        [4.0]

    Returns:
        (N,) float64, squared units of the raw tokens; NaN where no edge is left.

    Source: Wani et al. (2026), Dirichlet energy of vision tokens, unweighted and without feature normalisation as in
        the authors' code; `keep` is this project's choice.
    """
    tokens, keep = _grids(tokens, keep)
    total, edges = 0, 0
    for axis in (1, 2):
        squares = np.square(np.diff(tokens, axis=axis)).sum(-1)
        both = np.delete(keep, 0, axis) & np.delete(keep, -1, axis)
        total, edges = total + (squares * both).sum((1, 2)), edges + both.sum((1, 2))
    return _ratio(total, edges)


def mean_square_norm(
    tokens: Float[np.ndarray, "n h w c"], keep: Bool[np.ndarray, "n h w"] | None = None
) -> Float[np.ndarray, "n"]:
    """Mean of ||z||^2 over the tokens that count: what a Dirichlet energy is divided by to be free of scale.

    Returns:
        (N,) float64, squared units of the raw tokens; NaN where no token is kept.

    Source: This project's choice: rotation and overlays add flat area, and the energy alone cannot tell.
    """
    tokens, keep = _grids(tokens, keep)
    return _ratio((np.square(tokens).sum(-1) * keep).sum((1, 2)), keep.sum((1, 2)))


def band_of(h: int, w: int, bands: int) -> Int[np.ndarray, "h w"]:
    """Radial band, 0 to `bands - 1`, of every frequency of the 2-D DFT of an h x w grid, in the DFT's order.

    Bands have equal width in radius, from the mean to the corner, in cycles a token, so that a pattern is in the same
    band along both sides of a grid that is not square. A frequency on an edge belongs to the band above.

    Examples:
        >>> band_of(4, 4, 2).tolist()
        [[0, 0, 1, 0], [0, 1, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1]]
        >>> band_of(2, 4, 2).tolist()
        [[0, 0, 1, 0], [1, 1, 1, 1]]

    Source: This project's choice.
    """
    if min(h, w) < 1:
        raise ValueError(f"The token grid is {h} x {w}, allowed is a token or more on each side.")
    _check_bands(bands)
    rows, columns = _frequencies(h, w)
    squares = (w * rows[:, None]) ** 2 + (h * columns) ** 2  # times (h w)^2: whole numbers, so that ties stay ties
    radius = np.sqrt(squares / max(squares.max(), 1))
    return np.minimum(np.floor(bands * radius + 1e-9).astype(int), bands - 1)  # 1e-9: edges such as 1/3 are rounded


def change_spectrum(
    clean: Float[np.ndarray, "n h w c"], perturbed: Float[np.ndarray, "n h w c"], bands: int = 8
) -> tuple[Float[np.ndarray, "n bands"], Float[np.ndarray, "n bands"]]:
    """At which spatial frequencies token grids change, and how much of the clean pattern is left there.

    Shares: of the energy of perturbed - clean that lies in every band of `band_of`. Coherence: magnitude squared, |sum
    X Y*|^2 / (sum |X|^2 sum |Y|^2) of the spectra X (clean) and Y (perturbed), with sums over the band's frequencies
    and over features. It is 1 if the band is only multiplied by a number. Grids that moved lose coherence, so compare
    only perturbations that leave content where it is.

    Returns:
        Shares, which sum to 1 (0 in a band that holds no frequency; all NaN for a grid that did not change); and
        coherences, 0 to 1 (NaN in a band where clean or perturbed have no energy beyond 1e-24 of their total, which is
        rounding).

    Source: This project's choice; Wani et al. (2026) conclude on coherence across bands without a formula.
    """
    clean, perturbed = _same_shape(clean, perturbed)
    band = band_of(*clean.shape[1:3], bands)
    x, delta = (_spectrum(values, (1, 2)) for values in (clean, perturbed - clean))
    y = x + delta

    def sums(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return _band_sums(np.einsum("nhwc,nhwc->nhw", a, b), band, bands)

    change, before, after = sums(delta, delta), sums(x, x), sums(y, y)
    energy = np.ones_like(change, dtype=bool)
    for part in (before, after):
        energy &= part > ROUNDING * part.sum(1, keepdims=True)
    # bands hold k and -k together, so that the imaginary part of the cross spectrum sums to 0
    coherence = _ratio(np.square(sums(x, y)), np.where(energy, before * after, 0))
    return _ratio(change, change.sum(1, keepdims=True)), coherence


def power_change(
    clean: Float[np.ndarray, "n 3 h w"], perturbed: Float[np.ndarray, "n 3 h w"], bands: int = 3
) -> tuple[Float[np.ndarray, "n bands"], Float[np.ndarray, "n bands"]]:
    """Change of the power spectrum of images, from low to high spatial frequency.

    Power is |FFT|^2 of [0, 1] pixels, averaged over a band's frequencies and over channels. As in the paper it is not
    divided by the number of pixels, so that the difference grows with image size; the relative change does not. Bands
    are rings around frequency 0 in cycles an image, with edges `geomspace(1, r + 1, bands + 1) - 1` up to the corner r;
    the first holds the mean.

    Examples:
        >>> image = np.random.default_rng(0).random((1, 3, 16, 16))
        >>> power_change(image, image / 2)[1].round(6).tolist()
        [[-0.75, -0.75, -0.75]]

    Returns:
        Mean power of perturbed less clean, and that over the clean power plus 1e-8; NaN in a band that holds no
        frequency.

    Source: Wani et al. (2026), spectrum of the input image, after the authors' code.
    """
    clean, perturbed = _same_shape(clean, perturbed)
    _check_bands(bands)
    rows, columns = _frequencies(*clean.shape[2:])
    radius = np.sqrt(rows[:, None] ** 2 + columns**2)
    band = np.digitize(radius, np.geomspace(1, radius.max() + 1, bands + 1)[1:-1] - 1)
    counts = np.bincount(band.ravel(), minlength=bands)
    before, after = (
        _ratio(_band_sums(np.square(_spectrum(images, (2, 3))).sum(-1).mean(1), band, bands), counts)
        for images in (clean[..., None], perturbed[..., None])
    )
    return after - before, (after - before) / (before + 1e-8)


def _spectrum(values: np.ndarray, axes: tuple[int, int]) -> np.ndarray:
    """Half of the 2-D DFT of real values, parts side by side: a sum of products of two is the real part of X Y*."""
    return np.ascontiguousarray(np.fft.rfft2(values, axes=axes)).view(np.float64)


def _band_sums(half: Float[np.ndarray, "n h k"], band: Int[np.ndarray, "h w"], bands: int) -> np.ndarray:
    """Sums over every band of the whole DFT, from the half that `rfft2` gives."""
    times = np.full(half.shape[2], 2.0)  # columns k and -k are one column of the half
    times[0] = 1
    if band.shape[1] % 2 == 0:
        times[-1] = 1
    member = (band[:, : half.shape[2], None] == np.arange(bands)) * times[:, None]
    return half.reshape(len(half), -1) @ member.reshape(-1, bands)


def _frequencies(h: int, w: int) -> tuple[Int[np.ndarray, "h"], Int[np.ndarray, "w"]]:
    """Frequencies of the DFT along both sides, in cycles a grid."""
    return tuple(np.fft.fftfreq(n, 1 / n).round().astype(int) for n in (h, w))


def _ratio(total: np.ndarray, count: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(count > 0, total / count, np.nan)


def _check_bands(bands: int) -> None:
    if bands < 1:
        raise ValueError(f"bands is {bands}, allowed is 1 or more.")


def _same_shape(clean: np.ndarray, perturbed: np.ndarray) -> list[np.ndarray]:
    for name, values in (("clean", clean), ("perturbed", perturbed)):
        if values.ndim != 4 or values.shape != clean.shape:
            allowed = "four axes" if clean.ndim != 4 else f"{clean.shape}, that of the clean ones"
            raise ValueError(f"{name} has shape {values.shape}, allowed is {allowed}.")
    return [np.asarray(values, dtype=np.float64) for values in (clean, perturbed)]


def _grids(tokens: np.ndarray, keep: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    if tokens.ndim != 4:
        raise ValueError(f"tokens have shape {tokens.shape}, allowed is (N, H, W, C).")
    shape = tokens.shape[:3]
    keep = np.ones(shape, dtype=bool) if keep is None else np.asarray(keep, dtype=bool)
    if keep.shape != shape:
        raise ValueError(f"keep has shape {keep.shape}, allowed is {shape}, one value a token.")
    return np.asarray(tokens, dtype=np.float64), keep
