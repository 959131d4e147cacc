"""The tiers of 500 prompts, as LiteLLM has them. See README.md."""
