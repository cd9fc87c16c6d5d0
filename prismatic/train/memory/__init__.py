"""How much memory a run will take, and what to change when that is too much."""
