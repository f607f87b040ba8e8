"""What a network sees of a sample, and how its outputs become a prediction."""
