"""Which of two answers is better: by a known reward, a reward model, an endpoint, a person."""
