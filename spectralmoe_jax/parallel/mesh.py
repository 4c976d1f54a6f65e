"""Device mesh and sharding rules.

Three steps lead from an array to the devices that hold its parts: its logical axes (those of a parameter are
in `PARAMETER_AXES`), the rules that map each logical axis to axes of the mesh (`config.parallel.rules`), and
the mesh itself. A `Layout` is a mesh with its rules; `constrain` applies the active one inside a jitted
function.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from spectralmoe_jax.config.schema import MESH_AXES, RULES, ParallelConfig, RunConfig, axes_of
from spectralmoe_jax.errors import bad_value
from spectralmoe_jax.parameters import from_named_leaves, named_leaves

Axes = tuple[str | None, ...]

# Logical axes of the parameters that are sharded, by name (see `parameters.named_leaves`). The first pattern
# that is found in a name counts. A parameter without one, or with another number of dimensions, is
# replicated: norms, biases, the head and the adapter's shared projections are small.
PARAMETER_AXES: tuple[tuple[str, Axes], ...] = (
    (r"adapter/experts_a$", ("layer", "expert", "token", "rank")),
    (r"adapter/experts_b$", ("layer", "expert", "rank", "adapter_embed")),
    (r"adapter/w_(gate|noise)$", ("layer", "router", "adapter_embed", "expert")),
    (r"(visual|depth)/blocks/(attention/out|mlp/last)/kernel$", ("layer", "hidden", "embed")),
    (r"(visual|depth)/blocks/(attention/qkv|mlp/first)/kernel$", ("layer", "embed", "hidden")),
)


def parameter_axes(name: str, dimensions: int) -> Axes:
    """Logical axes of a parameter, or of an optimizer's moment of one, by its name."""
    for pattern, axes in PARAMETER_AXES:
        if len(axes) == dimensions and re.search(pattern, name):
            return axes
    return (None,) * dimensions


_active: contextvars.ContextVar[Layout | None] = contextvars.ContextVar("layout", default=None)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A device mesh and its sharding rules.

    Attributes:
      mesh: with the axes data, fsdp and expert, any of which may have one device.
      rules: mesh axes by logical axis.
    """

    mesh: Mesh
    rules: dict[str, tuple[str, ...]]

    def __hash__(self) -> int:
        return hash((self.mesh, frozenset(self.rules.items())))

    @classmethod
    def make(cls, settings: ParallelConfig, devices: Sequence[Any] | None = None) -> Layout:
        """Make the layout of a configuration.

        Args:
          settings: mesh and rules.
          devices: by default all there are; they may be described only, as those of a topology.

        Raises:
          UserError: the mesh has another number of devices.
        """
        devices = list(jax.devices() if devices is None else devices)
        shape = settings.shape(len(devices))
        types = (AxisType.Auto,) * len(MESH_AXES)
        rules = {name: axes_of(axes) for name, axes in settings.rules or RULES}
        layout = cls(jax.make_mesh(shape, MESH_AXES, axis_types=types, devices=devices), rules)
        if not all(_is_shard(rows) for rows in layout._rows_by_process().values()):
            # The order that suits the interconnect splits a host's images: keep the hosts' order instead.
            ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
            layout = cls(Mesh(np.array(ordered).reshape(shape), MESH_AXES, axis_types=types), rules)
        return layout

    def size(self, logical: str) -> int:
        """Number of devices that a logical axis is sharded over."""
        return int(np.prod([self.mesh.shape[axis] for axis in self.rules.get(logical, ())], dtype=int))

    @property
    def is_single(self) -> bool:
        """True if the mesh has a single device."""
        return self.mesh.size == 1

    def sharding(self, axes: Sequence[str | None] = (), shape: Sequence[int] | None = None) -> NamedSharding:
        """Sharding of an array by its logical axes.

        Args:
          axes: a name or None for each dimension; () for an array that is replicated.
          shape: of the array, to replicate along a dimension that cannot be divided evenly.
        """
        spec = []
        for number, name in enumerate(axes):
            mesh_axes = self.rules.get(name, ()) if name else ()
            if shape is not None and mesh_axes and shape[number] % self.size(name or ""):
                mesh_axes = ()
            spec.append(mesh_axes[0] if len(mesh_axes) == 1 else mesh_axes or None)
        return NamedSharding(self.mesh, PartitionSpec(*spec))

    def parameter_shardings(self, tree: Any) -> Any:
        """Sharding of every leaf of nested parameters, or of an optimizer's state for them."""

        def of_leaf(name: str, leaf: Any) -> NamedSharding:
            return self.sharding(parameter_axes(name, len(leaf.shape)), leaf.shape)

        named = named_leaves(tree)
        return from_named_leaves({name: of_leaf(name, leaf) for name, leaf in named.items()}, tree)

    def shapes(self, tree: Any) -> Any:
        """Shape, dtype and sharding of every leaf of parameters, which are arrays or shapes themselves."""

        def shape(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree.map(shape, tree, self.parameter_shardings(tree))

    def place(self, tree: Any) -> Any:
        """Put parameters, which are the same on every host, on their devices."""
        return jax.tree.map(put, tree, self.parameter_shardings(tree))

    def place_batch(self, batch: Any) -> Any:
        """Put this process's rows of a batch on its devices, as its shard of the global batch."""

        def of_leaf(rows: np.ndarray) -> Array:
            sharding = self.sharding(("batch", *(None,) * (np.ndim(rows) - 1)))
            return jax.make_array_from_process_local_data(sharding, rows)

        return jax.tree.map(of_leaf, batch)

    def process_shard(self) -> tuple[int, int]:
        """(shard index, shard count) of the global batch: the shard whose rows this process's devices hold.

        Shards are equal and consecutive. Processes along the expert axis hold the same shard.
        """
        rows = self._rows_by_process()[jax.process_index()]
        return rows[0] // len(rows), self.size("batch") // len(rows)

    def _rows_by_process(self) -> dict[int, list[int]]:
        """Rows that each process holds of a batch with one row for each device of its axis, in order."""
        rows: dict[int, set[int]] = {}
        slices: Mapping[Any, Any] = self.sharding(("batch",)).devices_indices_map((self.size("batch"),))
        for device, (part,) in slices.items():
            rows.setdefault(device.process_index, set()).add(part.start or 0)
        return {process: sorted(held) for process, held in rows.items()}

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Make this the layout that `constrain` applies. Open it inside the function that is traced."""
        token = _active.set(self)
        try:
            yield
        finally:
            _active.reset(token)

    def traced(self, function: Callable) -> Callable:
        """Wrap a function so that this layout is active while it is traced."""

        def inside(*args: Any, **kwargs: Any) -> Any:
            """Call the function with this layout active."""
            with self.active():
                return function(*args, **kwargs)

        return inside


def _is_shard(rows: list[int]) -> bool:
    """Return True if these rows are one of equal consecutive shards."""
    return rows[-1] - rows[0] == len(rows) - 1 and rows[0] % len(rows) == 0


def active_layout() -> Layout | None:
    """The active layout if it has more than one device, else None."""
    layout = _active.get()
    return None if layout is None or layout.is_single else layout


def constrain(x: Array, *axes: str | None) -> Array:
    """Shard an activation by its logical axes; without an active layout of several devices, do nothing.

    Args:
      x: the activation.
      axes: a name or None for each dimension; no axes to replicate it.
    """
    layout = active_layout()
    return x if layout is None else jax.lax.with_sharding_constraint(x, layout.sharding(axes))


def by_rows(function: Callable, *operands: Any) -> Any:
    """Apply a function on every device to the device's own rows of the batch.

    A loop inside the function then ends when the device's own rows are done.

    Args:
      function: of arrays, or trees of arrays, to the same, all with the batch as their first dimension.
      operands: its arguments.
    """
    layout = active_layout()
    if layout is None:
        return function(*operands)
    rows = layout.sharding(("batch",)).spec
    return jax.shard_map(function, mesh=layout.mesh, in_specs=rows, out_specs=rows, check_vma=False)(
        *operands
    )


def put(value: Any, sharding: NamedSharding) -> Array:
    """Put an array that every process has on its devices; each keeps its own part."""
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        data = put(jax.random.key_data(value), NamedSharding(sharding.mesh, PartitionSpec()))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(value))
    if sharding.is_fully_addressable:
        return jax.device_put(value, sharding)
    local = np.asarray(value)
    return jax.make_array_from_callback(local.shape, sharding, lambda index: local[index])


def training_layout(config: RunConfig, devices: Sequence[Any] | None = None) -> Layout | None:
    """Return the layout that a configuration trains on; None for one device.

    Args:
      config: a run's configuration.
      devices: by default all devices of all processes.

    Raises:
      UserError: a mesh that does not divide the devices, the batch or the experts.
    """
    layout = Layout.make(config.parallel, devices)
    check_layout(config, layout)
    return None if layout.is_single else layout


def check_layout(config: RunConfig, layout: Layout) -> None:
    """Check that the devices of a layout share batch and experts evenly.

    Raises:
      UserError: they do not.
    """
    shards, experts = layout.size("batch"), layout.mesh.shape["expert"]
    batch = config.train.batch_size
    if batch % shards:
        must = f"must be a multiple of {shards}, the devices along data and fsdp, which share the batch"
        raise bad_value("config.train.batch_size", batch, must)
    count = getattr(config.model.adapter, "num_experts", 1)
    if count % experts:
        choices = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
        must = f"must divide config.model.adapter.num_experts = {count}: {choices}"
        raise bad_value("config.parallel.expert", experts, must)


def inference_layout(config: RunConfig) -> Layout | None:
    """Return the layout to use a trained model on; None for one device.

    It is the one that the model was trained on where that fits the devices here, else all of them along data.
    """
    layout = Layout.make(config.parallel.fitted(jax.device_count()))
    return None if layout.is_single else layout


def print_devices(layout: Layout | None) -> None:
    """Print a line on the devices and the shard of this process; nothing for a single device."""
    if layout is None:
        return
    index, count = layout.process_shard()
    mesh = " x ".join(f"{axis}={size}" for axis, size in layout.mesh.shape.items())
    print(
        f"process {jax.process_index()} of {jax.process_count()}: {jax.local_device_count()} of "
        f"{jax.device_count()} devices ({jax.devices()[0].device_kind}), mesh {mesh}, "
        f"part {index + 1} of {count} of every batch",
        flush=True,
    )
