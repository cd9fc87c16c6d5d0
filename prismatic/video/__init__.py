"""Time and pixels: files to frames, clips to frame indices, frames to square inputs. Knows no tokens and no model."""
