"""The stored values of a slice, whatever its transfer syntax; `values` also rescales them."""
