"""Publish trained models."""
