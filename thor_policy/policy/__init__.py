"""How a request becomes a decision: packs, rules, prompt, and the strictest of floor and model."""
