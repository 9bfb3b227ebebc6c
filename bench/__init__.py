"""peftmark: the same LoRA fine-tune with Hugging Face + PEFT and with Unsloth, measured and compared.

The flow, one module a noun: ``suite`` -> ``plan`` -> ``cell`` -> ``record`` -> ``compare`` -> ``report``.
"""

__version__ = "0.1.0"
