"""What is kept of an archive, and what is asked of it.

`build` makes an index of sources; `folder` says what lies where in it; `records`, `summary` and `query` are its public tables, with
the names of `pseudonyms` in them; `reading` opens it and reads volumes; `export` writes them as NIfTI.
"""
