"""Text to windows of tokens: sources, tokenizers, the tokenized cache, and the windows that slots stand for."""
