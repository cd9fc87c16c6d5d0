"""Trained models in other people's layouts: Transformers folders (hf.py) and the older run folders (prismatic.py)."""
