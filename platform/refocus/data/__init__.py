"""From raw images in the object store to datasets and training batches, on Ray Data."""
