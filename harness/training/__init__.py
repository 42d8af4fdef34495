"""Fine-tuning: the same updates for any number of processes, exactly resumable."""
