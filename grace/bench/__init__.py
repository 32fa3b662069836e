"""Speed and memory of one model in several formats: what `grace bench` measures.

`candidates` says what stands at a path and whether it is the same model, `directory` measures a
directory in this process, `llama_cpp` a GGUF file in llama.cpp, and `table` shows the numbers.
"""
