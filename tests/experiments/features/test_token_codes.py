"""Codes of token data: what they decode to, by the rules that the page decodes them with."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.features import token_codes

RNG = np.random.default_rng(0)


def decoded_norms(coded: token_codes.NormCodes) -> np.ndarray:
    norms = coded.low * (coded.high / coded.low) ** ((coded.codes.astype(float) - 1) / 4094)
    return np.where(coded.codes == 0, 0, norms)


def decoded_attention(coded: token_codes.AttentionCodes) -> np.ndarray:
    squares = coded.codes.astype(float) ** 2
    total = squares.sum(axis=-1, keepdims=True)
    return squares / np.where(total > 0, total, 1) * coded.sums[..., None] / 65535


def test_norms_are_right_to_two_hundredths_of_a_percent_and_zeros_stay_zeros():
    norms = RNG.uniform(40, 220, (3, 50))
    norms[0, 7] = 0
    decoded = decoded_norms(token_codes.norm_codes(norms))
    assert decoded[0, 7] == 0
    np.testing.assert_allclose(decoded, norms, rtol=2.1e-4)


@pytest.mark.parametrize("norms", [np.zeros(5), np.full(5, 3.0), np.array([np.nan, 1.0, 2.0]), np.array([1e-30, 1.0])])
def test_norms_of_any_kind_have_codes(norms):
    coded = token_codes.norm_codes(norms)
    decoded = decoded_norms(coded)
    assert 0 < coded.low <= coded.high
    assert np.isfinite(decoded).all()
    assert decoded[-1] == pytest.approx(np.nan_to_num(norms)[-1])


def test_attention_is_right_on_average_and_rows_keep_their_sums():
    logits = RNG.normal(0, 3, (4, 60, 60))
    attention = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    decoded = decoded_attention(token_codes.attention_codes(attention))
    assert np.abs(decoded - attention).mean() < 3e-4
    assert np.abs(decoded - attention).max() < 0.015
    np.testing.assert_allclose(decoded.sum(axis=-1), 1, atol=1e-5)


def test_what_is_cut_is_exactly_zero_and_what_is_lost_is_missing_from_the_sum():
    attention = np.full((1, 2, 4), 0.25)
    attention[0, 0, 1:3] = 0
    attention[0, 1] = 0
    decoded = decoded_attention(token_codes.attention_codes(attention))
    np.testing.assert_allclose(decoded, attention, atol=1e-5)
    assert (decoded[attention == 0] == 0).all()


def test_cosines_are_exact_to_the_step_where_all_directions_are_kept_and_their_errors_are_told():
    tokens = RNG.normal(size=(2, 40, 48)) @ np.diag(0.9 ** np.arange(48)) + 1
    units = token_codes.unit_vectors(tokens)
    directions = token_codes.leading_directions(list(units))
    assert directions.shape == (48, 48)
    np.testing.assert_allclose(directions.T @ directions, np.eye(48), atol=1e-5)
    codes = token_codes.feature_codes(units, directions)
    exact = tokens[0] @ tokens[0].T / np.outer(*2 * [np.linalg.norm(tokens[0], axis=-1)])
    decoded = codes[0].astype(float) @ codes[0].astype(float).T / 64**2
    assert np.abs(decoded - exact).max() < 0.05
    errors = token_codes.cosine_errors(units[0], codes[0], (48, 4))
    np.testing.assert_allclose(errors[0], np.abs(decoded - exact).ravel(), atol=1e-5)
    assert errors[1].mean() > errors[0].mean(), "fewer coordinates say less"


def test_leading_directions_hold_what_all_given_tokens_share():
    shared = token_codes.unit_vectors(RNG.normal(size=80))
    units = token_codes.unit_vectors(RNG.normal(0, 0.02, (2, 50, 80)) + shared)
    directions = token_codes.leading_directions(list(units))
    assert directions.shape == (80, 64)
    assert abs(directions[:, 0] @ shared) > 0.99


def test_colours_are_those_of_scikit_learns_components_of_the_patches_in_full():
    from sklearn.decomposition import PCA

    units = token_codes.unit_vectors(RNG.normal(size=(2, 43, 12)) * np.r_[5, 3, 2, np.ones(9)])
    units[1, 4] = 0
    rgb = token_codes.colours(units, prefix=3)
    fitted = PCA(3).fit(units[0, 3:])
    for condition in range(2):
        expected = fitted.transform(units[condition])
        for channel in range(3):
            inside = (rgb[condition, :, channel] > 0) & (rgb[condition, :, channel] < 255)
            assert abs(np.corrcoef(rgb[condition, inside, channel], expected[inside, channel])[0, 1]) > 0.999
    assert (rgb[1, 4] == 0).all(), "a token of zeros has no colour"
    ends = [(rgb[0, 3:] == end).sum(axis=0) for end in (0, 255)]
    assert (np.stack(ends) >= 1).all()


def test_narrow_models_and_one_patch_have_colours():
    assert token_codes.colours(np.ones((1, 5, 2), np.float32), prefix=1).shape == (1, 5, 3)
    assert token_codes.colours(np.ones((1, 2, 8), np.float32), prefix=1).shape == (1, 2, 3)
