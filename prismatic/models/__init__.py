"""Models: vision backbones, frame aggregators, projectors, LLMs, and the VLM that they compose."""
