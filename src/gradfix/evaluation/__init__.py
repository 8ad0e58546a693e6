"""The one model in memory: moved along a vector, measured, fine-tuned, judged."""
