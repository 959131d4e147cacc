"""The engine vllm: the preset of the engine `command`, with sleep, the share of the GPU's memory, and its queue.

What is said here of vLLM was read in the source of its main branch; nothing here imports it.
"""
