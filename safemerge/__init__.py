"""safemerge: find merges of fine-tuned language models that are skilled and safe."""

__version__ = "0.2.0"
