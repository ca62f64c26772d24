"""The model: a frozen base, frozen experts, and a trainable gate beside every adapted layer."""
