"""Llama 2, built and measured: the library behind the notebooks."""
