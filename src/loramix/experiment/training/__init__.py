"""Training through `transformers.Trainer`, for finetuning, adapters and gates alike."""
