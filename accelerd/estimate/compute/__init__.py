"""How large the buffer is that a model computes in: its graph in outline, and where each result would be put.

Owns the graphs of the known kinds of layers (`layers`, `recurrent`, `rwkv`), their order (`build`) and the search for
free places (`place`), as llama.cpp does all of it before it reserves memory. Pure: knows no files and no processes.
"""
