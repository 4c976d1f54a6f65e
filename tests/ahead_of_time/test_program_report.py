"""Operations of products against their closed forms."""

import jax
import jax.numpy as jnp
import pytest

from spectralmoe_jax.ahead_of_time.program_cost import product_flops


def flops(function, *shapes):
    return product_flops(jax.make_jaxpr(function)(*(jnp.zeros(shape) for shape in shapes)).jaxpr)


def repeated(x, w):
    return jax.lax.scan(lambda x, _: (x @ w, None), x, length=7)[0]


def grouped(x, w):
    return jax.lax.ragged_dot(x, w, jnp.array([2, 3, 5], jnp.int32))


def convolved(x, k):
    return jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


CASES = [
    (lambda x, w: x @ w, [(3, 5), (5, 7)], 2 * 3 * 5 * 7),
    (lambda x, w: jnp.einsum("bnd,bmd->bnm", x, w), [(2, 3, 5), (2, 4, 5)], 2 * 2 * 3 * 4 * 5),
    (repeated, [(3, 5), (5, 5)], 7 * 2 * 3 * 5 * 5),
    (jax.checkpoint(repeated), [(3, 5), (5, 5)], 7 * 2 * 3 * 5 * 5),
    (grouped, [(10, 4), (3, 4, 6)], 2 * 10 * 4 * 6),
    (convolved, [(1, 8, 8, 3), (3, 3, 3, 5)], 2 * 8 * 8 * 5 * 3 * 3 * 3),
    (lambda x: jnp.sin(x) * x, [(3, 5)], 0),
]


@pytest.mark.parametrize(("function", "shapes", "expected"), CASES)
def test_flops_of_products(function, shapes, expected):
    assert flops(function, *shapes) == expected


def test_a_gradient_adds_two_products():
    def loss(w, x):
        return jnp.sum((x @ w) ** 2)

    assert flops(jax.grad(loss, argnums=(0, 1)), (5, 7), (3, 5)) == 3 * 2 * 3 * 5 * 7
