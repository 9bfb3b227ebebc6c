"""How fast are the kernels on this GPU? Unsloth, Liger, plain PyTorch and torch.compile at the sizes of Llama layers.

    operations --parameters--> bench_kernels (pytest-benchmark) --its JSON--> table

``operation`` says what one operation is and what is timed, ``timing`` how. The file is pytest-benchmark's own
(``pytest-benchmark compare`` reads it), with the environment and with what could not be timed added.
"""
