"""Troubles from the field, as scripts that lie beside the project on some machines."""
