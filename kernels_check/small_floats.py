"""Small floats as the bits that Triton's interpreter keeps them in, which NumPy has no types for."""

import numpy as np


def to_float32(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bit patterns (uint16) as float32; exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 rounded to nearest even as bfloat16 bit patterns (uint16); NaN stays NaN."""
    values = np.asarray(values, dtype=np.float32)
    bits = values.view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def from_e4m3(bits: np.ndarray) -> np.ndarray:
    """E4M3 bit patterns (uint8) as float32; exact, NaN stays NaN, which Triton's interpreter reads as 480."""
    import torch

    return torch.from_numpy(bits).view(torch.float8_e4m3fn).float().numpy()


def to_e4m3(values: np.ndarray) -> np.ndarray:
    """Rounded to nearest even as E4M3 bit patterns (uint8), beyond 448 the largest, as the hardware does; Triton's
    interpreter rounds ties up, and does not saturate."""
    import torch

    clipped = np.clip(np.asarray(values, dtype=np.float32), -448.0, 448.0)
    return torch.from_numpy(clipped).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
