"""ISPRS Potsdam to Vaihingen."""
