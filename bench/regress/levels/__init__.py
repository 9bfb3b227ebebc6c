"""The levels of a check, each usable alone: what one release does, as readings.

static    does it import, which kernels has it, does it still take what the harness passes
kernels   every kernel against float64 (kernels_check)
model     a tiny model: reference, trained parameters, accumulation, padding, packing, NaN
paired    speed, memory, accuracy and dispatch: two releases side by side, on a GPU
"""
