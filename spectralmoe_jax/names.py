"""One name per leaf, as used by optimizer rules, checkpoints and error messages."""

from typing import Any

import jax


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
