"""Imports GPT-2 models from the files of Hugging Face's transformers, and exports runs to such files."""
