"""Reads records of the kernel checks and timings, compares releases, and writes the page."""
