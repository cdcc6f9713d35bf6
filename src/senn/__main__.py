"""`python -m senn`, which `torchrun -m senn` starts in several processes."""

from senn.cli.main import run_as_script

if __name__ == "__main__":
    run_as_script()
