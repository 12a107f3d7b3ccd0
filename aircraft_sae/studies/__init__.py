"""The further studies: comparison, manipulation, curves and tuning, branches."""
