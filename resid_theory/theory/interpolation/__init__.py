"""Constructed networks with small weights that interpolate ("Theorem 1")."""
