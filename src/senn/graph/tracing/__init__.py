"""Find which sizes of a model belong together, from one run of its own forward.

This is the hard part of senn. A width isn't one number in a model. It is rows of one weight, columns of others, entries
of norms, a size in a `view`, an attribute called `num_heads`; nothing says which of them belong together, and somebody
else wrote the forward. Tracers of graphs see operations, not sizes: `torch.fx` stops at ordinary Python, and the nodes
of autograd know no dimensions. So one real forward pass on a small batch is watched, at two levels:

- *Tensors*, here. Every entry carries the label of the row that made it (`labels`). A dispatch mode (`tracer`) sees
  each ATen operation after it ran; its rule (`rules`) reads the label maps of the inputs and sets those of the
  outputs. Flattening, concatenation and pixel shuffle come out right because they are carried out on the labels
  themselves. Where a dimension has a fixed size, the units along it are merged into one: that is how a head is found
  without knowing what a head is. `trace_recorder` (with `label_maps`) holds all that the
  rules find; `recorded` defines its records.
- *Python integers*, in `senn.graph.sizes`: sizes and attributes that remember where they come from, so that every
  call which takes one can be replayed at the sizes of a grown model.

Both can be wrong (a constant in the code, `1 / sqrt(width)` as a float). So `senn.verification` proves the result: it
widens a copy, which must compute the same. docs/spaces.md shows a trace, operation by operation.
"""
