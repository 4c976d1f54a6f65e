"""Parameters of NNX modules as plain dictionaries of arrays, by path or by name.

A path is a tuple, ("backbone", "adapter", "w_gate"), a name is a path joined by "/". Optimizer rules,
checkpoints and error messages use names. Steps run on nested dictionaries: passing them to a jitted function
costs a fraction of what an NNX state does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar

import jax
from flax import nnx, traverse_util

Path = tuple[str, ...]
M = TypeVar("M", bound=nnx.Module)


def leaves(module: nnx.Module) -> dict[Path, jax.Array]:
    """Value of every variable by its path."""
    return traverse_util.flatten_dict(nnx.to_pure_dict(nnx.state(module)))


def fill(module: nnx.Module, values: Mapping[Path, Any]) -> None:
    """Replace values of variables in place; each keeps its dtype.

    Raises:
      KeyError: a path that does not exist.
    """
    state = nnx.state(module)
    flat = dict(nnx.to_flat_state(state))
    for path, value in values.items():
        variable = flat[path]
        variable.set_value(jax.numpy.asarray(value, variable.get_value().dtype))
    nnx.update(module, state)


def with_values(module: M, values: Mapping[Path, Any]) -> M:
    """Copy a module with some of its values, by path, replaced by others, which may be traced."""
    graph, state = nnx.split(module)
    flat = dict(nnx.to_flat_state(state))
    for path, value in values.items():
        flat[path] = flat[path].replace(value)
    return nnx.merge(graph, nnx.from_flat_state(list(flat.items())))


def split(module: nnx.Module) -> tuple[dict, dict]:
    """Split a module into nested dictionaries of its trainable values (`nnx.Param`) and of the others."""
    _, *states = nnx.split(module, nnx.Param, ...)
    trainable, frozen = (nnx.to_pure_dict(state) for state in states)
    return trainable, frozen


def join(module: M, *parts: Mapping) -> M:
    """Copy a module, which may be abstract, with the values of dictionaries that `split` returned."""
    values: dict[Path, Any] = {}
    for part in parts:
        values |= traverse_util.flatten_dict(part)
    return with_values(module, values)


def edited(state: nnx.State, edit: Callable[[dict[Path, Any]], dict[Path, Any]] | None) -> nnx.State:
    """Replace some values of a state: `edit` takes all values by path and returns those that change."""
    if edit is None:
        return state
    flat = dict(nnx.to_flat_state(state))
    for path, value in edit({tuple(map(str, path)): leaf.get_value() for path, leaf in flat.items()}).items():
        flat[path] = flat[path].replace(value)
    return nnx.from_flat_state(list(flat.items()))


def train_some(module: Any, wanted: Callable[[Path], bool], allowed: Collection[Path]) -> None:
    """Turn variables into trainable parameters, in place.

    Args:
      module: the module.
      wanted: returns True for the path of a variable to train.
      allowed: paths of the variables that may be trained.
    """
    for path, part in list(nnx.iter_modules(module)):
        for name, variable in list(vars(part).items()):
            here = (*map(str, path), name)
            if isinstance(variable, nnx.Variable) and here in allowed and wanted(here):
                setattr(part, name, nnx.Param(variable.get_value()))


def replaced(tree: Mapping, values: Mapping[Path, Any]) -> dict:
    """Copy nested dictionaries with some of their leaves, by path, replaced."""
    return traverse_util.unflatten_dict({**traverse_util.flatten_dict(tree), **values})


def named_leaves(tree: Any) -> dict[str, Any]:
    """Leaves of a pytree by name, as in `backbone/adapter/w_gate`, in the order of the tree.

    A dictionary key that is a path itself gives the same name as nested dictionaries do.
    """
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(_part(entry) for entry in path): leaf for path, leaf in paths}


def from_named_leaves(named: dict[str, Any], like: Any) -> Any:
    """Inverse of `named_leaves`: a pytree with the structure of `like`."""
    return jax.tree.unflatten(jax.tree.structure(like), [named[name] for name in named_leaves(like)])


def _part(entry: Any) -> str:
    if isinstance(entry, jax.tree_util.DictKey) and isinstance(entry.key, tuple):
        return "/".join(map(str, entry.key))
    return jax.tree_util.keystr((entry,), simple=True)
