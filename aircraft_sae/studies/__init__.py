"""What one of the further studies alone needs: comparison, manipulation, curves and tuning, branches and circuits."""
