"""Pages that open offline: their look, their drawings and pictures, and the page of a training run."""
