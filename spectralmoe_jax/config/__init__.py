"""The configuration of a run: every key with its default and its meaning.

`schema.py`, `model.py` and `adapters.py` are the sections, `load.py` reads and stores configurations,
`reference.py` writes them out. This room knows no other room of the project: all others take their section
from here.
"""
