"""Meters: each reads one thing and marks it missing (None) when it cannot; none invents a value."""
