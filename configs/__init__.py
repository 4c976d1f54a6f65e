"""Configurations that ship with the project, one readable Python file each."""
