"""Answering a dataset's rows with a model, scoring the answers, and a page that shows both."""
