"""What one of the further studies alone needs: `comparison` of networks."""
