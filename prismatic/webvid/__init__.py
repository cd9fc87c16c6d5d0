"""Offline tools behind `scripts/webvid.py`: a heap of videos with captions becomes woven examples."""
