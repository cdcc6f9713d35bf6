"""The paper's experiments, one file for each figure: data, network, run, drawing. `senn reproduce` runs them."""
