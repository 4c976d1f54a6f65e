"""Collectives read from compiled programs, with every notation of device groups."""

import types

import numpy as np
import pytest

from spectralmoe_jax.ahead_of_time.program_cost import Collective, collectives

PROGRAM = """HloModule step

%body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %gather = f32[4,8]{1,0} all-gather(%x), channel_id=1, replica_groups=GROUPS, dimensions={0}
  ROOT %t = (s32[], f32[4,8]) tuple(%i, %gather)
}

%condition (p: (s32[], f32[4,8])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: f32[4,8]) -> f32[4,8] {
  %sum = (bf16[16]{0}, f32[]) all-reduce(%a, %b), channel_id=2, replica_groups=GROUPS, to_apply=%add
  %loop = (s32[], f32[4,8]) while(%t), condition=%condition, body=%body, backend_config={TRIPS}
  ROOT %y = f32[4,8]{1,0} get-tuple-element(%loop), index=1
}
"""
TRIPS = '"known_trip_count":{"n":"24"}'
# devices of a mesh of data 2, fsdp 2, expert 2, in order
GROUPS = {
    "{{0,1},{2,3},{4,5},{6,7}}": ("expert",),
    "{{0,4},{1,5},{2,6},{3,7}}": ("data",),
    "{{0,2,4,6},{1,3,5,7}}": ("data", "fsdp"),
    "[4,2]<=[8]": ("expert",),
    "[4,2]<=[2,4]T(1,0)": ("data",),
    "[2,4]<=[4,2]T(1,0)": ("data", "fsdp"),
    "{}": ("data", "fsdp", "expert"),
    "mesh['axis_0'=4,'axis_1'=2] {'axis_1'}": ("expert",),
    "mesh['axis_0'=4,'axis_1'=2] {'axis_0'}": ("data", "fsdp"),
    "mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_1'}": ("data", "fsdp"),
}


@pytest.fixture
def mesh():
    """What is read of a mesh of 2 x 2 x 2 devices."""
    places = np.empty((2, 2, 2), object)
    return types.SimpleNamespace(axis_names=("data", "fsdp", "expert"), devices=places, size=8)


@pytest.mark.parametrize(("groups", "axes"), GROUPS.items())
def test_groups_are_attributed_to_mesh_axes(mesh, groups, axes):
    """The loop runs 24 times; a reduction of two arrays counts both."""
    found = collectives(PROGRAM.replace("GROUPS", groups).replace("TRIPS", TRIPS), mesh)
    assert found == [
        Collective("all-gather", axes, (("f32", (4, 8)),), 24),
        Collective("all-reduce", axes, (("bf16", (16,)), ("f32", ())), 1),
    ]
    assert [item.bytes for item in found] == [24 * 4 * 8 * 4, 16 * 2 + 4]


def test_a_collective_in_several_fusions_counts_once(mesh):
    fusion = "%fused (x: f32[4,8]) -> f32[4,8] {\n" + PROGRAM.split("{\n")[1].split("\n")[0] + "\n}\n\n"
    program = PROGRAM.replace("ENTRY", fusion + "ENTRY").replace(
        "ROOT %t =", "%f = f32[4,8] fusion(%x), kind=kCustom, calls=%fused\n  ROOT %t ="
    )
    assert program.count("channel_id=1,") == 2
    gathers = [
        item
        for item in collectives(program.replace("GROUPS", "{}").replace("TRIPS", TRIPS), mesh)
        if item.kind == "all-gather"
    ]
    assert [item.times for item in gathers] == [24]


@pytest.mark.parametrize(
    ("bound", "turns"),
    [
        ("%n = s32[]{:T(128)} constant(24)", 24),  # as for a TPU, whose programs do not state turns
        ("%n = s32[] get-tuple-element(%p), index=1", 1),  # known when it runs
    ],
)
def test_trip_count_of_a_loop_that_does_not_state_it(mesh, bound, turns):
    program = (
        PROGRAM.replace("GROUPS", "{}")
        .replace("TRIPS", "")
        .replace("  ROOT %less", f"  {bound}\n  ROOT %less")
    )
    gather = next(item for item in collectives(program, mesh) if item.kind == "all-gather")
    assert gather.times == turns


def test_an_asynchronous_gather_counts_its_result_only(mesh):
    line = (
        "  %s = (f32[2,8]{1,0}, f32[4,8]{1,0}) all-gather-start(%x), replica_groups={{0,1}}, dimensions={0}\n"
    )
    program = "ENTRY %main (x: f32[2,8]) -> f32[4,8] {\n" + line + "}\n"
    assert collectives(program, mesh) == [Collective("all-gather", ("expert",), (("f32", (4, 8)),), 1)]
