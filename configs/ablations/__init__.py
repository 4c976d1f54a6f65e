"""Grids of runs that ship with the project, one readable Python file each."""
