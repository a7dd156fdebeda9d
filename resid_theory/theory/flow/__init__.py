"""Dominant gradient flow in closed form."""
