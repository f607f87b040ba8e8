"""MRI simulation from relaxation times: signal equations, sampling, bias field, noise.

Signals are in units of the equilibrium magnetisation of pure water. After an
inversion they are signed: the signal of a voxel is a mixture of signed signals, and
the magnitude is taken when noise is added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from harness.core.types import Array

__all__ = [
    "TISSUES_3T",
    "Tissue",
    "bias_field",
    "block_mean",
    "inversion_recovery",
    "mprage",
    "phase_mask",
    "rician",
    "spin_echo",
    "spoiled_gradient_echo",
    "vessel_phase",
]

GYROMAGNETIC_HZ_PER_T = 42.577e6


@dataclass(frozen=True)
class Tissue:
    """Parameters of a tissue.

    Parameters
    ----------
    density : proton density relative to water, 0 to 1
    t1_ms, t2_ms, t2star_ms : relaxation times in ms, all positive
    """

    density: float
    t1_ms: float
    t2_ms: float
    t2star_ms: float


def _wetter(tissue: Tissue, water: Tissue, share: float) -> Tissue:
    """A tissue in fast exchange with free water: rates are averaged, static dephasing is unchanged."""
    rate1 = (1 - share) / tissue.t1_ms + share / water.t1_ms
    rate2 = (1 - share) / tissue.t2_ms + share / water.t2_ms
    static = 1 / tissue.t2star_ms - 1 / tissue.t2_ms
    density = (1 - share) * tissue.density + share * water.density
    return Tissue(density, 1 / rate1, 1 / rate2, 1 / (rate2 + static))


_WHITE = Tissue(0.70, 832, 79.6, 53.2)
_WATER = Tissue(1.0, 4309, 1886, 500)

#: Tissues of the head at 3 T.
#:
#: - white, grey: T1 and T2 of Wansapura et al. 1999, T2* of Peters et al. 2007,
#:   water content of Neeb et al. 2006.
#: - striatum (caudate, putamen): T1 of Wright et al. 2008; T2 and T2* from the
#:   iron-dependent rates of Gelman et al. 1999 (R2 = 12.7 + .62 [Fe],
#:   R2' = 2.2 + .47 [Fe], [Fe] in mg per 100 g), with R2 scaled to the white
#:   matter of Wansapura (that of Gelman is 18.0 /s).
#: - pallidum: rates of Gelman et al. 1999 on the same scale; T1 half-way
#:   between striatum and white matter.
#: - csf, fluid (of a perivascular space): T1 and T2 of subarachnoid fluid, as
#:   in "Quantification of T1 and T2 of subarachnoid CSF: Implications for water
#:   exchange between CSF and brain tissues" (Magn Reson Med, PMC10696635). T2* is
#:   long compared with all gradient-echo times used here; 500 ms is assumed.
#: - wmh: white matter with 40 % free water in fast exchange, i.e. T1 = 1,230 ms
#:   and T2 = 130 ms. No publication with all four values at 3 T was found; the
#:   increase of water content and the decrease of R1 agree with Anderson et al.
#:   2014.
#: - vein: T1 of Lu et al. 2004, T2 of Qin et al. 2011 (refocused at short
#:   intervals, as in a turbo spin echo), T2* of Zhao et al. 2007.
#: - scalp: subcutaneous fat of de Bazelaire et al. 2004; its T2* is assumed.
#:
#: References
#: ----------
#: Anderson et al. 2014, doi:10.1186/2045-8118-11-24. de Bazelaire et al. 2004,
#: doi:10.1148/radiol.2303021331. Gelman et al. 1999, Radiology 210:759. Lu et
#: al. 2004, doi:10.1002/mrm.20178. Neeb et al. 2006, NeuroImage 31:1156. Peters
#: et al. 2007, Magn Reson Imaging 25:748. Qin et al. 2011,
#: doi:10.1002/mrm.22556. Wansapura et al. 1999, J Magn Reson Imaging 9:531.
#: Wright et al. 2008, MAGMA 21:121. Zhao et al. 2007, doi:10.1002/mrm.21342.
TISSUES_3T: Mapping[str, Tissue] = {
    "csf": _WATER,
    "fluid": _WATER,
    "grey": Tissue(0.82, 1331, 110, 66.0),
    "pallidum": Tissue(0.76, 1082, 56, 26.5),
    "scalp": Tissue(0.90, 382, 68, 30),
    "striatum": Tissue(0.81, 1332, 68, 34),
    "vein": Tissue(0.85, 1584, 62.4, 21),
    "white": _WHITE,
    "wmh": _wetter(_WHITE, _WATER, 0.4),
}


def spin_echo(tissue: Tissue, *, tr_ms: float, te_ms: float) -> float:
    """Signal of a spin echo, ``density (1 − e^(−TR/T1)) e^(−TE/T2)``.

    Parameters
    ----------
    tissue : excited tissue
    tr_ms, te_ms : repetition and echo time; recovery during the echo is neglected
        (TE ≪ TR)

    Returns
    -------
    float
        Between 0 and the proton density.
    """
    return tissue.density * -math.expm1(-tr_ms / tissue.t1_ms) * math.exp(-te_ms / tissue.t2_ms)


def inversion_recovery(tissue: Tissue, *, tr_ms: float, ti_ms: float, te_ms: float) -> float:
    """Signal of an inversion-recovery spin echo, signed.

    The signal is ``density (1 − 2 e^(−TI/T1) + e^(−TR/T1)) e^(−TE/T2)``. A tissue is
    nulled at ``TI = T1 ln(2 / (1 + e^(−TR/T1)))``, which is ``T1 ln 2`` for long TR.

    Parameters
    ----------
    tissue : inverted and excited tissue
    tr_ms, ti_ms, te_ms : repetition, inversion and echo time

    Returns
    -------
    float
        Negative if the magnetisation has not yet passed zero.
    """
    recovered = 1 - 2 * math.exp(-ti_ms / tissue.t1_ms) + math.exp(-tr_ms / tissue.t1_ms)
    return tissue.density * recovered * math.exp(-te_ms / tissue.t2_ms)


def spoiled_gradient_echo(tissue: Tissue, *, tr_ms: float, te_ms: float, flip_deg: float) -> float:
    """Steady-state signal of a spoiled gradient echo (Ernst & Anderson 1966).

    Parameters
    ----------
    tissue : excited tissue
    tr_ms, te_ms : repetition and echo time
    flip_deg : flip angle in degrees

    Returns
    -------
    float
        Between 0 and the proton density; the transverse magnetisation decays with T2*.
    """
    flip = math.radians(flip_deg)
    kept = math.exp(-tr_ms / tissue.t1_ms)
    steady = math.sin(flip) * (1 - kept) / (1 - kept * math.cos(flip))
    return tissue.density * steady * math.exp(-te_ms / tissue.t2star_ms)


def mprage(
    tissue: Tissue, *, tr_ms: float, ti_ms: float, te_ms: float, flip_deg: float, spacing_ms: float, pulses: int
) -> float:
    """Steady-state signal of an inversion-prepared gradient-echo train, signed.

    Each period consists of an inversion, recovery, ``pulses`` excitations and a second
    recovery. All steps are affine in the longitudinal magnetisation, so that the steady
    state has a closed form (Deichmann et al. 2000). The signal is that of the middle
    excitation, at the centre of k-space.

    Parameters
    ----------
    tissue : inverted and excited tissue
    tr_ms : time between inversions
    ti_ms : time from the inversion to the middle excitation
    te_ms, flip_deg : echo time and flip angle of each excitation
    spacing_ms, pulses : echo spacing and number of excitations, with
        ``ti ≥ pulses/2 · spacing`` and ``tr − ti ≥ pulses/2 · spacing``

    Returns
    -------
    float
        Negative if the magnetisation has not yet passed zero.

    References
    ----------
    Deichmann et al. 2000, NeuroImage 12:112, doi:10.1006/nimg.2000.0601.
    """
    half = pulses // 2
    before, after = ti_ms - half * spacing_ms, tr_ms - ti_ms - (pulses - half) * spacing_ms
    assert min(before, after) >= 0, "the train must fit between the inversions"
    flip = math.radians(flip_deg)
    first = _then((-1.0, 0.0), _recovery(before, tissue.t1_ms))
    to_middle = _then(first, _train(half, flip, spacing_ms, tissue.t1_ms))
    to_end = _then(to_middle, _train(pulses - half, flip, spacing_ms, tissue.t1_ms))
    slope, offset = _then(to_end, _recovery(after, tissue.t1_ms))
    steady = offset / (1 - slope)
    middle = to_middle[0] * steady + to_middle[1]
    return tissue.density * math.sin(flip) * middle * math.exp(-te_ms / tissue.t2star_ms)


def _then(first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
    """Composition of two affine maps (slope, offset), the first applied first."""
    return second[0] * first[0], second[0] * first[1] + second[1]


def _recovery(time_ms: float, t1_ms: float) -> tuple[float, float]:
    kept = math.exp(-time_ms / t1_ms)
    return kept, 1 - kept


def _train(pulses: int, flip: float, spacing_ms: float, t1_ms: float) -> tuple[float, float]:
    """Excitations, each followed by a recovery: geometric convergence to the spoiled steady state."""
    kept = math.exp(-spacing_ms / t1_ms)
    ratio = math.cos(flip) * kept
    steady = (1 - kept) / (1 - ratio)
    slope = ratio**pulses
    return slope, steady * (1 - slope)


def vessel_phase(
    cos_angle: npt.ArrayLike,
    *,
    te_ms: float,
    field_t: float = 3.0,
    oxygenation: float = 0.65,
    hematocrit: float = 0.42,
) -> Array:
    """Phase of the blood inside a vein, modelled as an infinite cylinder.

    The susceptibility of deoxygenated red cells is 0.27 ppm (cgs) higher than that of
    oxygenated ones (Spees et al. 2001). The field shift inside a cylinder is
    ``½ Δχ (cos²θ − ⅓) B0``.

    Parameters
    ----------
    cos_angle : (...) cosine of the angle between the vein and the main field
    te_ms : echo time
    field_t, oxygenation, hematocrit : main field (T), venous oxygen saturation, hematocrit

    Returns
    -------
    (...) float array
        Phase in radians, with the sign of a left-handed system: negative for veins
        parallel to the field, which a negative phase mask darkens.

    References
    ----------
    Spees et al. 2001, doi:10.1002/mrm.1072.
    """
    susceptibility = 4 * math.pi * 0.27e-6 * hematocrit * (1 - oxygenation)
    shift = susceptibility / 2 * (np.square(np.asarray(cos_angle, float)) - 1 / 3)
    phase: Array = -2 * math.pi * GYROMAGNETIC_HZ_PER_T * field_t * shift * te_ms * 1e-3
    return phase


def phase_mask(phase: npt.ArrayLike, *, power: int = 4) -> Array:
    """Phase mask of susceptibility-weighted imaging (Haacke et al. 2004).

    Parameters
    ----------
    phase : (...) phase in radians, within ±π
    power : number of multiplications with the mask; the authors recommend four

    Returns
    -------
    (...) float array
        Factor of the magnitude: one where the phase is not negative, decreasing to zero
        at −π.

    References
    ----------
    Haacke et al. 2004, doi:10.1002/mrm.20198.
    """
    mask: Array = np.clip(1 + np.minimum(np.asarray(phase, float), 0) / math.pi, 0, 1) ** power
    return mask


def block_mean(values: Array, factors: Sequence[int]) -> Array:
    """Average over blocks of samples, which models partial-volume effects.

    Parameters
    ----------
    values : (..., X, Y, Z) array; the last three axes are averaged in blocks
    factors : three block lengths; incomplete blocks at the end are dropped

    Returns
    -------
    (..., X // fx, Y // fy, Z // fz) array
        float32.
    """
    kept = [size // factor for size, factor in zip(values.shape[-3:], factors, strict=True)]
    total = np.zeros((*values.shape[:-3], *kept), np.float32)
    # Summing strided views is several times faster than a mean over reshaped axes.
    for offset in np.ndindex(*factors):
        x, y, z = (slice(first, first + n * step, step) for first, n, step in zip(offset, kept, factors, strict=True))
        total += values[..., x, y, z]
    mean: Array = total / np.float32(math.prod(factors))
    return mean


def bias_field(shape: Sequence[int], spacing_mm: Sequence[float], percent: float, rng: np.random.Generator) -> Array:
    """Smooth multiplicative intensity non-uniformity, as caused by receive coils.

    Parameters
    ----------
    shape : number of voxels along each axis
    spacing_mm : voxel size along each axis; half wavelengths are 80 to 200 mm, about the
        size of a head
    percent : range of the field in percent, as in BrainWeb: 20 means 0.9 to 1.1 over the
        field of view
    rng : random generator

    Returns
    -------
    (X, Y, Z) float32 array
        Minimum and maximum are symmetric around one; all ones for zero percent.

    References
    ----------
    BrainWeb: Cocosco et al. 1997, NeuroImage 5:S425.
    """
    waves = rng.normal(size=(4, 3))
    waves *= (math.pi / rng.uniform(80, 200, size=4) / np.linalg.norm(waves, axis=1))[:, None]
    shifts, weights = rng.uniform(0, 2 * math.pi, size=4), rng.normal(size=4)
    axes = [np.arange(size, dtype=np.float32) * step for size, step in zip(shape, spacing_mm, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    total = np.zeros(tuple(shape), np.float32)
    for (kx, ky, kz), shift, weight in zip(waves.astype(np.float32), shifts, weights, strict=True):
        total += np.float32(weight) * np.cos(kx * x + ky * y + kz * z + np.float32(shift))
    reach = float(np.ptp(total))
    middle = float(total.max() + total.min()) / 2
    scaled: Array = 1 + (total - middle) * np.float32(percent / 100 / reach if reach else 0)
    return scaled


def rician(signal: Array, sigma: float, rng: np.random.Generator) -> Array:
    """Magnitude of a signal with Gaussian noise in the real and imaginary channels (Gudbjartsson & Patz 1995).

    Parameters
    ----------
    signal : (...) signed signal
    sigma : standard deviation of the noise in each channel, in the unit of the signal
    rng : random generator

    Returns
    -------
    (...) float32 array
        Non-negative; the magnitude of the signal if ``sigma = 0``.

    References
    ----------
    Gudbjartsson & Patz 1995, doi:10.1002/mrm.1910340618.
    """
    real = signal + rng.standard_normal(signal.shape, np.float32) * np.float32(sigma)
    imaginary = rng.standard_normal(signal.shape, np.float32) * np.float32(sigma)
    magnitude: Array = np.hypot(real, imaginary).astype(np.float32)
    return magnitude
