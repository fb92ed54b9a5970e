"""The prompt of a pair computed once and nothing padded: the plan, the attention, the hook."""
