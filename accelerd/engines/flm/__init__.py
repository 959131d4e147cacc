"""The engine `flm`: FastFlowLM, for models on the NPU of an AMD processor.

One server per model. See README.md in this directory for how accelerd handles FastFlowLM's behaviour.
"""
