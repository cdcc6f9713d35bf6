"""Entry points for other libraries: scikit-learn, Lightning, Hugging Face Trainer, skorch, Stable-Baselines3."""
