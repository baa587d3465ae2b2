"""Embeddings from pre-trained transformers."""
