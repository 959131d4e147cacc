"""The home "lemonade": an instance is a model inside a Lemonade Server."""
