"""FastFlowLM: models on the NPU of an AMD processor, by its program `flm`.

One server for each model, started and asked as accelerd asks all engines. It asks for no key, listens with TCP only,
and stays up when its model has failed: what is made of that is said in the plan.
"""
