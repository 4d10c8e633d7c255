"""The object store, and readers and writers of microscopy files."""
