"""Signal equations against hand-worked numbers, limits and slow replicas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from harness.simulation.mri import (
    TISSUES_3T,
    Tissue,
    bias_field,
    block_mean,
    inversion_recovery,
    mprage,
    phase_mask,
    rician,
    spin_echo,
    spoiled_gradient_echo,
    vessel_phase,
)

TISSUE = Tissue(density=0.8, t1_ms=1000, t2_ms=100, t2star_ms=50)


def test_spin_echo_by_hand() -> None:
    """For TR = 2 T1 and TE = T2 the signal is 0.8 (1 − e⁻²) e⁻¹."""
    assert spin_echo(TISSUE, tr_ms=2000, te_ms=100) == pytest.approx(0.8 * 0.8646647 * 0.3678794, rel=1e-6)


def test_spin_echo_approaches_the_proton_density() -> None:
    """For long TR and no TE, the signal is the proton density."""
    assert spin_echo(TISSUE, tr_ms=1e6, te_ms=0) == pytest.approx(0.8)


def test_inversion_recovery_nulls_at_t1_ln2() -> None:
    """For infinite TR, a tissue is nulled at TI = T1 ln 2."""
    assert inversion_recovery(TISSUE, tr_ms=1e7, ti_ms=1000 * math.log(2), te_ms=10) == pytest.approx(0, abs=1e-12)


def test_inversion_recovery_nulls_earlier_at_finite_tr() -> None:
    """For TR = 2 T1, a tissue is nulled at T1 ln(2 / (1 + e⁻²)) = 566 ms."""
    assert inversion_recovery(TISSUE, tr_ms=2000, ti_ms=566.2192, te_ms=10) == pytest.approx(0, abs=1e-6)


def test_inversion_recovery_is_negative_before_the_null() -> None:
    """The signal before the null is negative, since a voxel mixes signed signals."""
    assert inversion_recovery(TISSUE, tr_ms=1e7, ti_ms=100, te_ms=10) < 0


def test_gradient_echo_at_a_right_angle_is_saturation_recovery() -> None:
    """At 90°, the signal is 1 − e^(−TR/T1)."""
    found = spoiled_gradient_echo(TISSUE, tr_ms=1000, te_ms=50, flip_deg=90)
    assert found == pytest.approx(0.8 * 0.6321206 * 0.3678794, rel=1e-6)


def test_gradient_echo_peaks_at_the_ernst_angle() -> None:
    """The Ernst angle is acos(e^(−TR/T1)), 15.0° for TR = 35 ms and T1 = 1,009 ms."""
    tissue = Tissue(1, 35 / -math.log(math.cos(math.radians(15))), 100, 50)
    signals = [spoiled_gradient_echo(tissue, tr_ms=35, te_ms=0, flip_deg=angle) for angle in range(1, 90)]
    assert 1 + int(np.argmax(signals)) == 15


def test_mprage_equals_the_simulated_periods() -> None:
    """The closed form agrees with a magnetisation stepped through many periods."""
    magnetisation, flip, signal = 1.0, math.radians(9), 0.0

    def recover(value: float, time_ms: float) -> float:
        return 1 + (value - 1) * math.exp(-time_ms / TISSUE.t1_ms)

    for _ in range(40):
        magnetisation = recover(-magnetisation, 900 - 88 * 7)
        for pulse in range(176):
            if pulse == 88:
                signal = 0.8 * magnetisation * math.sin(flip) * math.exp(-3 / 50)
            magnetisation = recover(magnetisation * math.cos(flip), 7)
        magnetisation = recover(magnetisation, 1900 - 900 - 88 * 7)
    found = mprage(TISSUE, tr_ms=1900, ti_ms=900, te_ms=3, flip_deg=9, spacing_ms=7, pulses=176)
    assert found == pytest.approx(signal, rel=1e-9)


def test_vein_along_the_field_by_hand() -> None:
    """A third of 0.499 ppm at 127.7 MHz for 7.5 ms gives a phase of −1 radian."""
    shift_hz = 4 * math.pi * 0.27 * 0.42 * 0.35 / 3 * 127.731
    assert vessel_phase(1.0, te_ms=7.5) == pytest.approx(-2 * math.pi * shift_hz * 0.0075, rel=1e-6)


def test_vein_at_the_magic_angle_has_no_phase() -> None:
    """A vein at cos²θ = ⅓ has no phase."""
    assert vessel_phase(1 / math.sqrt(3), te_ms=7.5) == pytest.approx(0, abs=1e-12)


def test_phase_mask_darkens_negative_phase_only() -> None:
    """The mask is one for positive phase, (½)⁴ at −π/2 and zero at −π."""
    assert phase_mask([1.0, 0.0, -math.pi / 2, -math.pi]) == pytest.approx([1, 1, 1 / 16, 0])


def test_block_mean_is_the_mean_of_each_block() -> None:
    """Block means agree with a loop over blocks, without the remainder of the last axis."""
    values = np.random.default_rng(0).normal(size=(2, 4, 6, 5)).astype(np.float32)
    found = block_mean(values, (2, 3, 2))
    assert found.shape == (2, 2, 2, 2)
    for index in np.ndindex(2, 2, 2, 2):
        c, i, j, k = index
        block = values[c, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3, 2 * k : 2 * k + 2]
        assert found[index] == pytest.approx(block.mean(), abs=1e-6)


def test_bias_of_twenty_percent_spans_nine_tenths_to_eleven_tenths() -> None:
    """Non-uniformity of 20 % spans 0.9 to 1.1, as in BrainWeb."""
    field = bias_field((40, 50, 10), (1, 1, 1.5), 20, np.random.default_rng(0))
    assert (field.min(), field.max()) == pytest.approx((0.9, 1.1), abs=1e-5)


def test_bias_is_smooth() -> None:
    """The bias field changes by at most 5 % of its range per mm."""
    field = bias_field((64, 64, 16), (1, 1, 1), 20, np.random.default_rng(1))
    assert max(np.abs(np.diff(field, axis=axis)).max() for axis in range(3)) < 0.05 * 0.2


def test_bias_of_zero_is_one() -> None:
    """Without non-uniformity, the bias field is one."""
    assert np.all(bias_field((8, 8, 8), (1, 1, 1), 0, np.random.default_rng(0)) == 1)


def test_noise_follows_the_rice_distribution() -> None:
    """Noise passes a Kolmogorov–Smirnov test against scipy's Rice distribution."""
    noisy = rician(np.full(20_000, 2.0, np.float32), 0.5, np.random.default_rng(0))
    assert stats.kstest(noisy, stats.rice(b=4, scale=0.5).cdf).pvalue > 0.01


def test_no_noise_gives_the_magnitude() -> None:
    """Without noise, the image is the magnitude of the signal."""
    signal = np.array([-1.0, 0.0, 2.0], np.float32)
    assert rician(signal, 0.0, np.random.default_rng(0)).tolist() == [1, 0, 2]


def test_wet_white_matter_relaxes_more_slowly() -> None:
    """The T1 of 0.6 / 832 + 0.4 / 4309 per ms is 1,229 ms, and T2 accordingly."""
    lesion = TISSUES_3T["wmh"]
    assert (lesion.t1_ms, lesion.t2_ms) == pytest.approx((1228.5, 129.0), abs=0.1)
