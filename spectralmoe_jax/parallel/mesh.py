"""What lies where: a mesh of devices and the rules that spread arrays over it.

The logical axes of every parameter that is not the same on all devices.

Names are those of `models.state`'s nested dictionaries, joined by "/". The first rule that is found in a name
counts; a parameter without one, or of another number of dimensions, is kept whole on every device: norms,
biases, the head and the adapter's shared projections are small.

From a configuration to the layout of a run.
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

PARAMETER_AXES: tuple[tuple[str, Axes], ...] = (
    (r"adapter/experts_a$", ("layer", "expert", "token", "rank")),
    (r"adapter/experts_b$", ("layer", "expert", "rank", "adapter_embed")),
    (r"adapter/w_(gate|noise)$", ("layer", "router", "adapter_embed", "expert")),
    (r"(visual|depth)/blocks/(attention/out|mlp/last)/kernel$", ("layer", "hidden", "embed")),
    (r"(visual|depth)/blocks/(attention/qkv|mlp/first)/kernel$", ("layer", "embed", "hidden")),
)


def axes_of_parameter(name: str, dimensions: int) -> Axes:
    """Logical axes of a parameter, or of an optimizer's moment of one, by name."""
    for pattern, axes in PARAMETER_AXES:
        if len(axes) == dimensions and re.search(pattern, name):
            return axes
    return (None,) * dimensions


_active: contextvars.ContextVar[Layout | None] = contextvars.ContextVar("layout", default=None)


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh and its rules.

    Attributes:
      mesh: of the axes data, fsdp and expert, any of which may have one device.
      rules: mesh axes by logical axis.
    """

    mesh: Mesh
    rules: dict[str, tuple[str, ...]]

    def __hash__(self) -> int:
        return hash((self.mesh, frozenset(self.rules.items())))

    @classmethod
    def make(cls, settings: ParallelConfig, among: Sequence[Any] | None = None) -> Layout:
        """Over the devices `among`, default all there are; they may be those of a topology, described only.

        Raises:
          UserError: a mesh of another number of devices.
        """
        devices: list[Any] = list(jax.devices() if among is None else among)
        shape = settings.shape(len(devices))
        types = (AxisType.Auto,) * len(MESH_AXES)
        rules = {name: axes_of(axes) for name, axes in settings.rules or RULES}
        layout = cls(jax.make_mesh(shape, MESH_AXES, axis_types=types, devices=devices), rules)
        if not all(_is_a_part(rows) for rows in layout._rows_by_host().values()):
            # The order that suits the wires tears a host's images apart: keep the hosts' order instead.
            ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
            layout = cls(Mesh(np.array(ordered).reshape(shape), MESH_AXES, axis_types=types), rules)
        return layout

    def size(self, logical: str) -> int:
        """Over how many devices a logical axis is spread."""
        return int(np.prod([self.mesh.shape[axis] for axis in self.rules.get(logical, ())], dtype=int))

    @property
    def is_single(self) -> bool:
        return self.mesh.size == 1

    def sharding(self, axes: Sequence[str | None] = (), shape: Sequence[int] | None = None) -> NamedSharding:
        """Where an array of these logical axes lies; () for whole on every device.

        Args:
          axes: a name or None a dimension.
          shape: of the array, where a dimension that cannot be divided evenly is to be kept whole.
        """
        spread = []
        for number, name in enumerate(axes):
            mesh_axes = self.rules.get(name, ()) if name else ()
            if shape is not None and mesh_axes and shape[number] % self.size(name or ""):
                mesh_axes = ()
            spread.append(mesh_axes[0] if len(mesh_axes) == 1 else mesh_axes or None)
        return NamedSharding(self.mesh, PartitionSpec(*spread))

    def of_parameters(self, tree: Any) -> Any:
        """The sharding of every leaf of nested parameters, or of an optimizer's state for them."""

        def of_leaf(name: str, leaf: Any) -> NamedSharding:
            return self.sharding(axes_of_parameter(name, len(leaf.shape)), leaf.shape)

        named = named_leaves(tree)
        return from_named_leaves({name: of_leaf(name, leaf) for name, leaf in named.items()}, tree)

    def shapes(self, tree: Any) -> Any:
        """Of every leaf of parameters, arrays or shapes themselves: its shape, dtype and where it belongs."""

        def shape(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree.map(shape, tree, self.of_parameters(tree))

    def place(self, tree: Any) -> Any:
        """Parameters, the same on every host, each where it belongs."""
        return jax.tree.map(put, tree, self.of_parameters(tree))

    def place_batch(self, batch: Any) -> Any:
        """This host's rows of a batch of images or labels as its part of the whole batch."""

        def of_leaf(rows: np.ndarray) -> Array:
            sharding = self.sharding(("batch", *(None,) * (np.ndim(rows) - 1)))
            return jax.make_array_from_process_local_data(sharding, rows)

        return jax.tree.map(of_leaf, batch)

    def host_part(self) -> tuple[int, int]:
        """(number, of how many): which of the equal consecutive parts of a batch this host's devices hold.

        Hosts along the expert axis hold the same part.
        """
        rows = self._rows_by_host()[jax.process_index()]
        return rows[0] // len(rows), self.size("batch") // len(rows)

    def _rows_by_host(self) -> dict[int, list[int]]:
        """Which rows of a batch with one a share each host holds, in order."""
        rows: dict[int, set[int]] = {}
        places: Mapping[Any, Any] = self.sharding(("batch",)).devices_indices_map((self.size("batch"),))
        for device, (part,) in places.items():
            rows.setdefault(device.process_index, set()).add(part.start or 0)
        return {host: sorted(held) for host, held in rows.items()}

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """While open, `constrain` speaks of this layout. Open it inside the function that is traced."""
        token = _active.set(self)
        try:
            yield
        finally:
            _active.reset(token)

    def traced(self, function: Callable) -> Callable:
        """`function` with this layout active while it is traced."""

        def inside(*args: Any, **kwargs: Any) -> Any:
            with self.active():
                return function(*args, **kwargs)

        return inside


def active_layout() -> Layout | None:
    """The layout that is active and of more than one device, or None."""
    layout = _active.get()
    return None if layout is None or layout.is_single else layout


def constrain(x: Array, *axes: str | None) -> Array:
    """Says where an activation lies, by a logical axis or None a dimension; no axes: whole everywhere.

    Without an active layout of several devices it does nothing.
    """
    layout = active_layout()
    return x if layout is None else jax.lax.with_sharding_constraint(x, layout.sharding(axes))


def by_rows(function: Callable, *operands: Array) -> Any:
    """`function(*operands)`, every device on its own rows of the batch, which is the first dimension of all
    operands and results: a loop inside then ends when a device's own rows are done."""
    layout = active_layout()
    if layout is None:
        return function(*operands)
    rows = layout.sharding(("batch",)).spec
    return jax.shard_map(function, mesh=layout.mesh, in_specs=rows, out_specs=rows, check_vma=False)(
        *operands
    )


def put(value: Any, sharding: NamedSharding) -> Array:
    """An array that every host has, of which each keeps what is its own."""
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        data = put(jax.random.key_data(value), NamedSharding(sharding.mesh, PartitionSpec()))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(value))
    if sharding.is_fully_addressable:
        return jax.device_put(value, sharding)
    local = np.asarray(value)
    return jax.make_array_from_callback(local.shape, sharding, lambda index: local[index])


def _is_a_part(rows: list[int]) -> bool:
    """Whether these rows are one of equal consecutive parts."""
    return rows[-1] - rows[0] == len(rows) - 1 and rows[0] % len(rows) == 0


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
    parts, experts = layout.size("batch"), layout.mesh.shape["expert"]
    batch = config.train.batch_size
    if batch % parts:
        must = f"must be a multiple of {parts}, the devices along data and fsdp, which share the batch"
        raise bad_value("config.train.batch_size", batch, must)
    count = getattr(config.model.adapter, "num_experts", 1)
    if count % experts:
        choices = ", ".join(str(n) for n in range(1, count + 1) if count % n == 0)
        must = f"must divide config.model.adapter.num_experts = {count}: {choices}"
        raise bad_value("config.parallel.expert", experts, must)


def using_layout(config: RunConfig) -> Layout | None:
    """Return the layout to use a trained model on; None for one device.

    It is the one it was trained on where that fits the devices here, else all of them along data.
    """
    layout = Layout.make(config.parallel.fitted(jax.device_count()))
    return None if layout.is_single else layout


def print_view(layout: Layout | None) -> None:
    """One line of what this process sees of the mesh, where it is not alone on one device."""
    if layout is None:
        return
    part, parts = layout.host_part()
    mesh = " x ".join(f"{axis}={size}" for axis, size in layout.mesh.shape.items())
    print(
        f"process {jax.process_index()} of {jax.process_count()}: {jax.local_device_count()} of "
        f"{jax.device_count()} devices ({jax.devices()[0].device_kind}), mesh {mesh}, "
        f"part {part + 1} of {parts} of every batch",
        flush=True,
    )
