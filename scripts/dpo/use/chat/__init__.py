"""A conversation with a finished run: policy and reference, in a terminal or over a pipe."""
