"""Adapters: the dual-gated mixture of experts and its peers."""
