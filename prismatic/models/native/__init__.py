"""Transformers VLM checkpoints (Qwen2-VL, LLaVA, ...) under the same data, training, evaluation and questions."""
