"""Configuration of a run: every key with its default and its meaning.

`schema.py`, `model.py` and `adapters.py` define the sections, `load.py` reads and stores configurations, and
`reference.py` prints them. This package depends on no other package of the project; the others take their
sections from it.
"""
