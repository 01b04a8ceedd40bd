"""The stages of `benchmarks.gpu_hour`: what is measured and compared on a card, one file for each subject."""
