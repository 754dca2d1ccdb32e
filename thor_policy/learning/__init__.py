"""What past decisions and corrections are good for: replay, counterfactuals, export, promotion, training."""
