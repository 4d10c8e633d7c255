"""What travels over HTTP: image codecs, header names, problem documents.

Shared by ``refocus.client`` and ``refocus.serving``; it needs NumPy, pydantic, tifffile and
imagecodecs, and neither Ray, torch nor an object store.
"""
