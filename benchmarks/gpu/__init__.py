"""What this code does on one GPU: ``python -m benchmarks.gpu``, which `make gpu` runs.

Needs torch and transformers alone. Each row is a module with a function that yields figures as it
finds them; rows run one after the other, each in a process and a time limit of its own. With
``--tiny --device cpu`` each runs small anywhere: what it measures then says nothing.
"""
