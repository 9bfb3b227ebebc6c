"""Chat templates and tokenizers that are made here: the small one of random weights, the mended one of SmolLM2."""

from pathlib import Path
from typing import Any

IM_START, IM_END, PAD = "<|im_start|>", "<|im_end|>", "<|pad|>"
SMALL_VOCABULARY = 1024
BYTES_AND_SPECIALS = 259

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMOLLM2_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    + CHATML.removeprefix("{% for message in messages %}")
)
"""ChatML with SmolLM2's own system prompt, as in its published tokenizer_config.json."""

SAMPLE_TEXT = """
Solve the problem. State the final answer in a single number on the last line, after the word Answer.
What is the sum of the following numbers? Think step by step, then write the result.
A shop sold 12 apples on Monday, 35 on Tuesday and twice as many on Wednesday. How many apples did it sell in all?
On Monday it sold 12, on Tuesday 35, so together 12 + 35 = 47. On Wednesday it sold 2 * 47 = 94. In total 47 + 94 = 141.
A knight always tells the truth and a knave always lies. If she says that he is a knave, then who is who?
We are given that either the first statement is true or the second one is false; both of them cannot hold together.
The instruction, the context and the question come first, and the answer of the assistant comes after them.
There were 250 people in the train, and at each of the 4 stations 17 more of them got off. How many were left?
Each of the children has 3 boxes with 24 pencils. They gave 18 away, lost 5 and bought 60 more for 7 dollars each.
Let x be the number that we want to find. Then x - 8 = 31, which gives x = 39. Therefore the result is 39.
"""


def small_tokenizer(vocabulary_limit: int) -> Any:
    """A byte-level BPE tokenizer of at most ``SMALL_VOCABULARY`` tokens with a ChatML template; always the same one.

    Its end token is ``<|im_end|>``, its padding a token of its own. ``vocabulary_limit``: the model's vocab_size, at
    least ``BYTES_AND_SPECIALS``.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(SMALL_VOCABULARY, vocabulary_limit),
        special_tokens=[PAD, IM_START, IM_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SAMPLE_TEXT.splitlines(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=IM_START, eos_token=IM_END, pad_token=PAD, chat_template=CHATML,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip


def smollm2_tokenizer(gguf: Path) -> Any:
    """SmolLM2's tokenizer out of a GGUF file, with what transformers reads wrongly set as published.

    Published: end and padding ``<|im_end|>``, begin ``<|im_start|>``, each digit a token of its own. transformers gives
    end ``<|im_start|>`` and no padding, and drops the digit rule.
    """
    from tokenizers import decoders, pre_tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    raw = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    backend = raw.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=IM_START, eos_token=IM_END, pad_token=IM_END, unk_token="<|endoftext|>",
        additional_special_tokens=[IM_START, IM_END], chat_template=SMOLLM2_TEMPLATE, model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )  # fmt: skip
