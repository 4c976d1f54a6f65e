"""Inspection of training batches: measurements, tables and a picture (`spectralmoe data`)."""
