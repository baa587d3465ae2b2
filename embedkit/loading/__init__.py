"""A name in; a model with its preprocessor, or a data set, out."""
