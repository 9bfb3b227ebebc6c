"""Models: a catalogue of real architectures, and where a cell's weights and tokenizer come from."""
