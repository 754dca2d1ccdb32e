"""How a question becomes a decision: packs, rules, prompt, and the strictest of floor and model."""
