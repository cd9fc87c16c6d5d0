"""A web page on which a model is asked: the server, its visitors, their files, and the line before the model.

On the standard library's http.server, not gradio: that would add 16 packages and 170 MB, hold Pillow below 13 and call
the ffmpeg program for videos, while what matters here (frames, times, tokens, the line, the bars) would still be ours.
"""
