"""The paper's figures, each a small file that reads like its section: data, network, run, figure."""
