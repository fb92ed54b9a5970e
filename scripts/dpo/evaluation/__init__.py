"""Did the model get better? Contestants, prompts, generations, measures, benchmarks."""
