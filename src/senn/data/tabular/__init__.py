"""Tables from files, as columns of numbers with a record of how they were encoded."""
