"""Model versions on the object store, the aliases that name them, and the gate before them."""
