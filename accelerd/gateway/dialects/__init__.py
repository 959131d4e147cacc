"""Translates between OpenAI's chat, Anthropic's messages and Ollama's chat. Pure: decoded JSON, bytes in and out.

neutral.py has the form in the middle. chat.py, messages.py and ollama.py read their API into it and write it, so that
there are three readers and three writers, and no translator for each pair. translation.py joins two of them.
"""
