"""Language models: rows of data, their tokenizers, and one wrapper around any Transformers causal LM."""
