"""Evenlink: several uplinks made one, in proportion to their capacities."""

__version__ = "0.1.0"
