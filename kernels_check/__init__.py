"""Are Unsloth's (and Liger's) Triton kernels right? Each kernel against a float64 reference, on a CPU or a GPU.

    families/*.py --cases--> execute --entries--> record --cli--> table

On a CPU, Triton's interpreter runs the real kernels on CPU tensors (``interpreter`` says what it cannot cover). One
process a family, so that a kernel that corrupts memory takes only its own family down (``child``, ``check``).
"""
