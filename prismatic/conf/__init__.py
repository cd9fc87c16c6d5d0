"""Configurations: draccus dataclasses of plain values. Imports the standard library, draccus and the registry only."""
