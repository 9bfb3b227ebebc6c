"""The limits search: the longest sequence, largest batch or largest rank that trains inside a VRAM budget."""
