"""From files to batches: sources of labelled images, random transforms, the Grain loader.

Nothing in this package imports JAX, so that loader workers start fast and never touch a device.
"""
