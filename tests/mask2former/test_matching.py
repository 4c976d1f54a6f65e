"""Matching with empty slots against scipy."""

import jax
import numpy as np
import pytest

from spectralmoe_jax.mask2former.matching import match

optimize = pytest.importorskip("scipy.optimize")


@pytest.mark.parametrize(("classes", "queries"), [(8, 30), (5, 5), (9, 4)])
def test_absent_classes_do_not_change_the_matching(classes, queries):
    rng = np.random.default_rng(classes)
    costs = rng.normal(0, 5, (60, classes, queries)).astype(np.float32)
    present = rng.uniform(size=(60, classes)) < 0.6
    present[0], present[1] = False, True
    query, matched = map(np.asarray, jax.jit(jax.vmap(match))(costs, present))
    for image in range(60):
        rows, columns = optimize.linear_sum_assignment(costs[image][present[image]])
        slots = np.flatnonzero(present[image])[rows]
        np.testing.assert_array_equal(np.flatnonzero(matched[image]), slots)
        np.testing.assert_array_equal(query[image][slots], columns)


def test_non_finite_costs_leave_the_other_matches_valid():
    costs = np.array([[np.nan, 1.0, 3.0], [0.0, np.inf, 5.0], [2.0, 2.0, -np.inf]], np.float32)
    query, matched = match(costs, np.array([True, True, False]))
    np.testing.assert_array_equal(query, [1, 0, 0])
    np.testing.assert_array_equal(matched, [True, True, False])
