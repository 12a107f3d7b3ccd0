"""What only the further studies need: comparison, manipulation, curves and tuning, branches and circuits."""
