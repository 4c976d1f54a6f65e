"""Evaluation: confusion matrices over whole images, by domain, as a table and as JSON."""
