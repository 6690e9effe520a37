"""Kinds of pairs."""

# Of a pair: one identity and both pictures real, which alone is positive; two
# identities; one identity with one picture forged, and with both.
KINDS = ("same", "other", "one_forged", "both_forged")
