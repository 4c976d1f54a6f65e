"""Pictures of a run: colours of features, the chosen window, the scenes."""

from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.decomposition import PCA

from spectralmoe_jax.inference.pictures import choose_records, most_varied, principal_colours


def test_colours_are_principal_components():
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(2, 50, 8)) * [9, 5, 3, 1, 0.5, 0.2, 0.1, 0.1]
    found = principal_colours(tokens).reshape(-1, 3)
    assert found.dtype == np.uint8
    expected = PCA(3).fit_transform(tokens.reshape(-1, 8))
    for i in range(3):  # but for their sign, and the ends that are cut
        inside = (found[:, i] > 0) & (found[:, i] < 255)
        assert inside.mean() > 0.9
        assert abs(np.corrcoef(found[inside, i], expected[inside, i])[0, 1]) > 0.9999
    brighter = principal_colours(3 * tokens + 7).reshape(-1, 3)
    np.testing.assert_allclose(brighter.astype(int), found.astype(int), atol=1)


def test_the_window_with_the_most_even_classes():
    label = np.zeros((64, 96), np.uint8)
    label[:32, 32:64] = np.arange(32) % 2  # an even mixture of two
    label[32:, 64:] = np.arange(32) % 4  # of four
    label[32:, :32] = 255  # no label at all
    assert most_varied(label, 32) == (32, 64)
    assert most_varied(label[:, :64], 32) == (0, 32)
    assert most_varied(label[:20, :20], 32) == (0, 0)  # smaller than the window


@pytest.mark.parametrize(
    ("count", "names"), [(3, "a0 b0 c0"), (5, "a0 b0 c0 a1 c1"), (9, "a0 b0 c0 a1 c1 a2")]
)
def test_scenes_of_all_domains(count, names):
    places = [("a", 3), ("b", 1), ("c", 2)]
    records = [SimpleNamespace(domain=d, name=f"{d}{i}") for d, n in places for i in range(n)]
    assert " ".join(record.name for record in choose_records(records, count)) == names
