"""Data pipelines, from files to batches: sources of labelled images, random transforms and the Grain loader.

Nothing in this package imports JAX, so that worker processes start fast and never touch a device.
"""
