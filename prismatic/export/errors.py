"""The error of everything that cannot be exported."""


class ExportError(ValueError):
    """A model cannot be written in the layout asked for, or came out different; the text gives the reason."""
