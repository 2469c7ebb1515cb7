"""The four stages: each a generator over clips that adds what it computes to the clip's work."""
