"""Between an NNX module and plain dictionaries of arrays.

Steps run on plain dicts: passing them to a jitted function costs a fraction of what an NNX state does.

One name per leaf, as used by optimizer rules, checkpoints and error messages.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import jax
from flax import nnx, traverse_util


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by '/'-joined path, as in `backbone/adapter/w_gate`, in tree order.

    A dict key that is a path itself, `("backbone", "adapter", "w_gate")`, gives the same name as
    nested dicts do.
    """
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(_part(entry) for entry in path): leaf for path, leaf in paths}


def from_named_leaves(named: dict[str, Any], like: Any) -> Any:
    """The inverse of `named_leaves`: a pytree with the structure of `like`."""
    return jax.tree.unflatten(jax.tree.structure(like), [named[name] for name in named_leaves(like)])


def _part(entry: Any) -> str:
    if isinstance(entry, jax.tree_util.DictKey) and isinstance(entry.key, tuple):
        return "/".join(map(str, entry.key))
    return jax.tree_util.keystr((entry,), simple=True)


Path = tuple[str, ...]
M = TypeVar("M", bound=nnx.Module)


def leaves(module: nnx.Module) -> dict[Path, jax.Array]:
    """Every variable's value by its path."""
    return traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(module)))


def fill(module: nnx.Module, values: Mapping[Path, Any]) -> None:
    """Replace variables in place; each keeps its dtype. Raises KeyError for a path that does not exist."""
    state = nnx.state(module)
    flat = dict(nnx.to_flat_state(state))
    for path, value in values.items():
        variable = flat[path]
        variable.set_value(jax.numpy.asarray(value, variable.get_value().dtype))
    nnx.update(module, state)


def with_values(module: M, values: Mapping[Path, Any]) -> M:
    """A copy of the module that reads `values` (possibly traced) instead of its own variables."""
    graph, state = nnx.split(module)
    flat = dict(nnx.to_flat_state(state))
    for path, value in values.items():
        flat[path] = flat[path].replace(value)
    return nnx.merge(graph, nnx.from_flat_state(list(flat.items())))


def split(module: nnx.Module) -> tuple[dict, dict]:
    """(trainable, frozen) as nested plain dicts: what is an `nnx.Param`, and everything else."""
    _, *states = nnx.split(module, nnx.Param, ...)
    trainable, frozen = (nnx.to_pure_dict(state) for state in states)
    return trainable, frozen


def join(module: M, *parts: Mapping) -> M:
    """A copy of the module, which may be abstract, that reads the nested dicts `split` gave."""
    values: dict[Path, Any] = {}
    for part in parts:
        values |= traverse_util.flatten_dict(part)
    return with_values(module, values)


def edited(state: nnx.State, edit: Callable[[dict[Path, Any]], dict[Path, Any]] | None) -> nnx.State:
    """A state with some values replaced: `edit` gets all by path and gives those that change."""
    if edit is None:
        return state
    flat = dict(nnx.to_flat_state(state))
    for path, value in edit({tuple(map(str, path)): leaf.get_value() for path, leaf in flat.items()}).items():
        flat[path] = flat[path].replace(value)
    return nnx.from_flat_state(list(flat.items()))


def train_some(module: Any, wanted: Callable[[Path], bool], allowed: Collection[Path]) -> None:
    """Make parameters, in place, of the variables at `allowed` paths that are `wanted`."""
    for path, part in list(nnx.iter_modules(module)):
        for name, variable in list(vars(part).items()):
            here = (*map(str, path), name)
            if isinstance(variable, nnx.Variable) and here in allowed and wanted(here):
                setattr(part, name, nnx.Param(variable.get_value()))
